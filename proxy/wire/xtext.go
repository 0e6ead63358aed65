package wire

// AppendXtext appends s as xtext, RFC 3461 section 4: what could end an
// argument, or mean something else in it, is written in hexadecimal.
func AppendXtext(dst []byte, s string) []byte {
	const digits = "0123456789ABCDEF"
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || c == '+' || c == '=' {
			dst = append(dst, '+', digits[c>>4], digits[c&15])
		} else {
			dst = append(dst, c)
		}
	}
	return dst
}
