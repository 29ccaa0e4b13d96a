package config

import "strings"

const (
	// maxSuggestions bounds the names among which a similar one is looked for.
	maxSuggestions = 200
	maxDistance    = 3
)

// didYouMean is a question about the name that is most like the given one, or nothing.
func didYouMean(name string, among []string) string {
	if len(name) > maxName || len(among) > maxSuggestions {
		return ""
	}
	best, least := "", min(maxDistance, max(1, len(name)/3))+1
	for _, candidate := range among {
		if plain(candidate) == plain(name) {
			best = candidate
			break
		}
		if d := distance(name, candidate); d < least {
			best, least = candidate, d
		}
	}
	if best == "" {
		return ""
	}
	return " (did you mean " + best + "?)"
}

// plain is a name without what the habits of other formats change in it: maxFrame, max-frame, MAX_FRAME.
func plain(name string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(name))
}

// distance is the number of insertions, deletions, substitutions and swaps of neighbours between a and b.
func distance(a, b string) int {
	if max(len(a)-len(b), len(b)-len(a)) > maxDistance {
		return maxDistance + 1
	}
	// Rows of the table: before the last, the last, this one.
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
