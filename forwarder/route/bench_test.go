package route

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func BenchmarkMatch(b *testing.B) {
	for _, rules := range []int{10, 1000, 10000} {
		var byService, byTwo []Match
		for i := range rules {
			service := fmt.Sprintf("com.example.Service%d:1.0", i)
			byService = append(byService, Match{Service: Exactly(service)})
			byTwo = append(byTwo, Match{Service: Exactly(service), Headers: []Header{{"env", Exactly("gray")}}})
		}
		service := fmt.Appendf(nil, "com.example.Service%d:1.0", rules-1)
		for _, c := range []struct {
			name    string
			matches []Match
			values  [][]byte
			want    int
		}{
			{"service", byService, [][]byte{service}, rules - 1},
			{"two-headers", byTwo, [][]byte{[]byte("gray"), service}, rules - 1},
			{"both-groups", append(slices.Clone(byTwo), byService...), [][]byte{[]byte("blue"), service}, 2*rules - 1},
		} {
			b.Run(fmt.Sprintf("%s/rules=%d", c.name, rules), func(b *testing.B) {
				table := mustNew(b, c.matches...)
				b.ReportAllocs()
				for b.Loop() {
					if got := table.Match(c.values); got != c.want {
						b.Fatalf("got rule %d, want %d", got, c.want)
					}
				}
			})
		}
	}
}

// BenchmarkMatchPrefix finds the last of many prefixes, of the lengths that names come in and of 64 lengths.
func BenchmarkMatchPrefix(b *testing.B) {
	for _, rules := range []int{10, 1000, 10000} {
		var names, lengths []Match
		for i := range rules {
			name := fmt.Sprintf("com.example.Service%d:", i)
			names = append(names, Match{Service: Text{Prefix, name}})
			lengths = append(lengths, Match{Service: Text{Prefix, name + strings.Repeat("x", i%64)}})
		}
		last := fmt.Sprintf("com.example.Service%d:", rules-1)
		for _, c := range []struct {
			name    string
			matches []Match
			service string
		}{
			{"names", names, last + "1.0"},
			{"64-lengths", lengths, last + strings.Repeat("x", 64)},
		} {
			b.Run(fmt.Sprintf("%s/rules=%d", c.name, rules), func(b *testing.B) {
				table := mustNew(b, c.matches...)
				values := [][]byte{[]byte(c.service)}
				b.ReportAllocs()
				for b.Loop() {
					if got := table.Match(values); got != rules-1 {
						b.Fatalf("got rule %d, want %d", got, rules-1)
					}
				}
			})
		}
	}
}

// BenchmarkMatchRegex finds the last of 100 regexes: alone in their rules, behind an exact service, and when an exact
// rule before all of them fits.
func BenchmarkMatchRegex(b *testing.B) {
	const rules = 100
	var alone, behind []Match
	for i := range rules {
		re := Text{Regex, fmt.Sprintf(`com\.example\.[A-Z][a-z]+%d:\d\.\d`, i)}
		alone = append(alone, Match{Service: re})
		behind = append(behind, Match{Service: Exactly(fmt.Sprintf("com.example.Service%d:1.0", i)), Method: Text{Regex, "(get|list|find).*"}})
	}
	service, method := fmt.Appendf(nil, "com.example.Service%d:1.0", rules-1), []byte("findAll")
	for _, c := range []struct {
		name    string
		matches []Match
		values  [][]byte
		want    int
	}{
		{"alone", alone, [][]byte{service}, rules - 1},
		{"behind-service", behind, [][]byte{service, method}, rules - 1},
		{"not-tried", slices.Concat([]Match{{Service: Exactly(string(service))}}, alone), [][]byte{service}, 0},
	} {
		b.Run(c.name, func(b *testing.B) {
			table := mustNew(b, c.matches...)
			b.ReportAllocs()
			for b.Loop() {
				if got := table.Match(c.values); got != c.want {
					b.Fatalf("got rule %d, want %d", got, c.want)
				}
			}
		})
	}
}

func BenchmarkPick(b *testing.B) {
	for _, weights := range [][]int{{90, 10}, {9999, 10000, 9998}} {
		b.Run(fmt.Sprint(weights), func(b *testing.B) {
			s := NewShares(weights)
			b.ReportAllocs()
			for b.Loop() {
				if s.Pick() >= len(weights) {
					b.Fatal("an index that there is not")
				}
			}
		})
	}
}
