package stored

import (
	"testing"

	"postern/cmd/postern/internal/logs"
	"postern/proxy/state"
)

func TestPseudonymsStayTheSame(t *testing.T) {
	notes := new(state.Memory)
	key, err := pseudonymKeyOf(t.Context(), notes)
	if err != nil {
		t.Fatal(err)
	}
	again, err := pseudonymKeyOf(t.Context(), notes)
	if err != nil {
		t.Fatal(err)
	}
	first, second, other := logs.NewPseudonyms(key), logs.NewPseudonyms(again), logs.NewPseudonyms(nil)
	if a, b, c := first.Of("alice"), second.Of("alice"), other.Of("alice"); a != b || a == c || a == first.Of("bob") {
		t.Errorf("alice is %s, %s, and elsewhere %s", a, b, c)
	}
}
