package revision

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
)

func compare(a, b uint64) int { return cmp.Compare(a, b) }

// remember adds the newest revision to those in memory and forgets what is too much.
func (s *Store) remember(k kept) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.memory = append(s.memory, k)
	s.forget()
}

// forget drops the oldest revisions that are too many or too large together. It is called with mu held.
func (s *Store) forget() {
	drop, size := 0, int64(0)
	for i, k := range slices.Backward(s.memory) {
		size += int64(len(k.data))
		if n := len(s.memory) - i; n > 1 && (n > s.o.Keep || size > s.o.Bytes) {
			drop = i + 1
			break
		}
	}
	s.memory = slices.Clone(s.memory[drop:])
}

// exported is what goes from one process to the next: revisions as files hold them, from the oldest to the newest.
type exported []json.RawMessage

// Export is the revisions of a store in memory for the Import of the next process: of the newest as many as fit into
// limit bytes. It is nil for a store in a folder, which the next process reads itself.
func (s *Store) Export(limit int) ([]byte, error) {
	if s.folder != "" {
		return nil, nil
	}
	s.mu.Lock()
	list := s.memory
	s.mu.Unlock()
	first, size := len(list), len("[]")
	for first > 0 && size+len(list[first-1].data) <= limit {
		first--
		size += len(list[first].data)
	}
	out := make(exported, 0, len(list)-first)
	for _, k := range list[first:] {
		out = append(out, k.data)
	}
	data, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("exporting the revisions: %w", err)
	}
	return data, nil
}

// Import takes over what Export gave, into a store in memory that has no revision yet. A store in a folder has its own
// and takes none.
func (s *Store) Import(data []byte) error {
	if s.folder != "" || len(data) == 0 {
		return nil
	}
	var list exported
	if err := json.Unmarshal(data, &list); err != nil {
		return fmt.Errorf("importing revisions: %w", err)
	}
	memory := make([]kept, 0, len(list))
	for i, data := range list {
		var seal struct{ Revision Info }
		if err := json.Unmarshal(data, &seal); err != nil {
			return fmt.Errorf("importing revisions: item %d: %w", i, err)
		}
		n := seal.Revision.Number
		if i > 0 && n <= memory[i-1].number {
			return fmt.Errorf("importing revisions: %d stands behind %d", n, memory[i-1].number)
		}
		var r Revision
		if err := open(data, s.o.File, n, &r); err != nil {
			return fmt.Errorf("importing revisions: item %d %w", i, err)
		}
		memory = append(memory, kept{n, data})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.memory) > 0 {
		return fmt.Errorf("importing revisions: there are %d already", len(s.memory))
	}
	s.memory = memory
	s.forget()
	return nil
}
