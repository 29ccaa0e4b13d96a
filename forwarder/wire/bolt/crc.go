package bolt

import "hash/crc32"

// A CRC register is a polynomial over GF(2) modulo the generator, its bits reversed: bit 31 is the
// coefficient of x^0, bit 0 that of x^31. A zero byte that passes through multiplies it by x^8, so n of them
// multiply it by x^8n, which takes one product a digit of n instead of one step a byte.

// crcPowers[i][d] is x^8n for n = d * 16^i. It is never written after the package's start.
var crcPowers = makeCRCPowers()

func makeCRCPowers() (t [8][16]uint32) {
	const one = 1 << 31
	base := uint32(one >> 8) // x^8
	for i := range t {
		t[i][0] = one
		for d := 1; d < 16; d++ {
			t[i][d] = crcMultiply(t[i][d-1], base)
		}
		base = crcMultiply(t[i][15], base)
	}
	return t
}

// crcShift is the register crc after n zero bytes.
func crcShift(crc, n uint32) uint32 {
	for i := 0; n != 0; i++ {
		if d := n & 15; d != 0 {
			crc = crcMultiply(crc, crcPowers[i&7][d])
		}
		n >>= 4
	}
	return crc
}

// crcMultiply is the product of two registers.
func crcMultiply(a, b uint32) uint32 {
	// The product has 63 bits; with one more place bit 63 is x^0, so that the upper half is a register and
	// the lower one is a register with four more bytes to pass.
	p := carryless(a, b) << 1
	r := uint32(p)
	r = crc32.IEEETable[byte(r)] ^ r>>8
	r = crc32.IEEETable[byte(r)] ^ r>>8
	r = crc32.IEEETable[byte(r)] ^ r>>8
	r = crc32.IEEETable[byte(r)] ^ r>>8
	return uint32(p>>32) ^ r
}

// carryless is the product of a and b where adding is exclusive or. An operand is split into four, each with
// every fourth bit: at most eight ones meet in a column of an ordinary product of two such parts, and a count
// of eight stays below the next column, so the carries are where the mask takes them away.
func carryless(a, b uint32) uint64 {
	const m0, m1, m2, m3 = 0x1111111111111111, 0x2222222222222222, 0x4444444444444444, 0x8888888888888888
	a0, a1, a2, a3 := uint64(a)&m0, uint64(a)&m1, uint64(a)&m2, uint64(a)&m3
	b0, b1, b2, b3 := uint64(b)&m0, uint64(b)&m1, uint64(b)&m2, uint64(b)&m3
	return (a0*b0^a1*b3^a2*b2^a3*b1)&m0 |
		(a0*b1^a1*b0^a2*b3^a3*b2)&m1 |
		(a0*b2^a1*b1^a2*b0^a3*b3)&m2 |
		(a0*b3^a1*b2^a2*b1^a3*b0)&m3
}
