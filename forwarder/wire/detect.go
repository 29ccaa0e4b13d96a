package wire

// DetectFirst asks the codecs in their order whose protocol the first bytes of a connection speak. It is Mine, with
// the codec, of the first one that says so after all before it have said NotMine: an earlier codec that needs more is
// waited for, so that the answer does not depend on how the bytes were cut. It is NotMine when no codec is left.
// Unless it is Mine the codec is nil.
func DetectFirst(codecs []Codec, b []byte) (Codec, Detection) {
	for _, c := range codecs {
		switch c.Detect(b) {
		case Mine:
			return c, Mine
		case NeedMore:
			return nil, NeedMore
		case NotMine:
		}
	}
	return nil, NotMine
}
