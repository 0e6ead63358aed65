package state

import (
	"fmt"
	"testing"
)

func BenchmarkGet(b *testing.B) {
	bucket := opened(b, temporary(b), Options{}).Bucket("a")
	for _, size := range []int{100, 20 << 10} {
		keys := make([]string, 1000)
		for i := range keys {
			keys[i] = fmt.Sprintf("%d-%d", size, i)
		}
		if err := bucket.UpdateAll(b.Context(), keys, func(string, []byte) ([]byte, error) { return make([]byte, size), nil }); err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			n := 0
			for b.Loop() {
				n++
				if _, err := bucket.Get(b.Context(), keys[n%1000]); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprint(size, "-parallel"), func(b *testing.B) {
			b.RunParallel(func(p *testing.PB) {
				for n := 0; p.Next(); n++ {
					if _, err := bucket.Get(b.Context(), keys[n%1000]); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
