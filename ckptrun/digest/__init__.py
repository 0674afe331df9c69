r"""The sharding-independent digest: 32 hex digits that tell whether two leaves hold the same bits.

Values are never looked at as numbers, only as bits: -0.0, NaN payloads, dtype and shape all count. A sharded leaf has
the digest of the full tensor, and no rank ever gathers it: each rank sums up its own chunks, the sums are added.

Definition 1
============
All numbers are integers. This text is enough to write the digest anew.

1.  *Rows and columns.* Take dims of the full tensor from the last one on, until their sizes times the bytes of an
    element give at least 1024 or no dim is left. The dims taken number the columns, those left over number the rows,
    both in row-major order (the last dim runs fastest). A 0-dim tensor is one row of one element.
2.  *Words.* The bytes of a row, elements in order, each little-endian (a complex number: real part, then imaginary
    part), are filled up with zero bytes to a multiple of 4 and read as signed little-endian 32-bit words. Word k of row
    i is ``x(i, k)``; it lies in line ``h = k div 256`` of the row, at place ``l = k mod 256`` of the line.
3.  *Numbers.* ``u(t, n)`` is output number ``t * 2^40 + n``, counted from 0, of splitmix64 seeded with 0::

        z = (t * 2^40 + n + 1) * 0x9E3779B97F4A7C15 mod 2^64
        z = (z xor (z >> 30))  * 0xBF58476D1CE4E5B9 mod 2^64
        z = (z xor (z >> 27))  * 0x94D049BB133111EB mod 2^64
        u = z xor (z >> 31)

    ``odd(t, n)`` is ``u(t, n)`` with its lowest bit set, ``even(t, n)`` with its lowest bit cleared.
4.  *Multipliers.* Four weights per place, ``g(c, l) = (u(c, l) >> 49) - 2^14`` for c = 0 to 3; ``g(0, l)`` is made odd
    by setting its lowest bit. Then, for each of two sums, s = 0 and 1::

        place(s, l) = odd(4+s, 0) * g(0, l) + even(4+s, 1) * g(1, l) + even(4+s, 2) * g(2, l) + even(4+s, 3) * g(3, l)
        line(s, h)  = odd(6+s, h mod 4096)  * odd(8+s, h div 4096)
        row(s, i)   = odd(10+s, i mod 4096) * odd(12+s, i div 4096)

5.  *Sums.* ``S(s)`` is the sum over all i and k of ``x(i, k) * place(s, l) * line(s, h) * row(s, i)``, modulo 2^64.
6.  *Digits.* BLAKE2b with 16 bytes of output over the ASCII text ``ckptrun digest 1\n<dtype>\n<shape>\n<S(0)><S(1)>``:
    dtype as torch spells it without ``torch.``, shape as decimal sizes with commas between, each sum as 16 lower-case
    hex digits. For a plain value: over ``ckptrun digest 1\nvalue\n`` and ``ckptrun.values.canonical_bytes``.

What follows from it
====================
- The sums add up over any division of the elements into chunks, so over any sharding.
- All multipliers are odd and a word has 32 bits: changing one element of up to 4 bytes changes both sums, always. For
  an element of 8 bytes (two words) at least one of the two sums changes, always; for complex128, when only its real or
  only its imaginary part changes.
- Other changes can go unseen by chance. Several changes within one line are lost by its four weighted sums with a
  chance of at most about 2^-59 (and never if only two words differ); any changes by the two sums with 2^-128, or up to
  about 2^-54 where they are as regular as can be (nothing but the signs of a rectangle of elements). The digest is no
  protection against someone who looks for a collision.
- The four weighted sums of a line are exact in float64: 256 words up to 2^31 times weights up to 2^14 stay within 2^53.
  So a float64 matrix product computes them, in whatever order it adds, and that is the fast way.

Must not know files, formats or what a leaf means.
"""

from ckptrun.digest.leaves import digest, digest_leaves, digest_with_parts, part_digests
from ckptrun.digest.sums import Sums, finish

__all__ = ["Sums", "digest", "digest_leaves", "digest_with_parts", "finish", "part_digests"]
