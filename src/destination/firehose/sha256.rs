//! SHA-256 of several bodies at once (FIPS 180-4). One body's hash is a chain in which each step waits for the
//! one before; a processor has room for several chains side by side. Which kernel runs is decided at run time;
//! where the processor has none, each body goes through the `sha2` crate, which is also what all are held against.
//!
//! It is not a general SHA-256: no streaming, no state that outlives a call.

use sha2::Digest as _;

#[cfg(target_arch = "x86_64")]
mod x86;

/// A digest.
pub(super) type Digest = [u8; 32];

const BLOCK_BYTES: usize = 64;
/// Bodies that the widest kernel hashes side by side.
pub(super) const LANES_MAX: usize = 16;
/// The initial hash value (FIPS 180-4, 5.3.3).
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The digest of each body, in order.
pub(super) fn digest_each(bodies: &[&[u8]]) -> Vec<Digest> {
    #[cfg(target_arch = "x86_64")]
    if let Some(kernel) = x86::Kernel::detect()
        && bodies.len() > 1
    {
        return side_by_side(bodies, |states, blocks, count| kernel.compress(states, blocks, count));
    }
    bodies.iter().map(|body| sha2::Sha256::digest(body).into()).collect()
}

/// One body on its way through a kernel: its whole blocks first, then one or two with the padding.
struct Lane<'a> {
    /// Which body.
    index: usize,
    whole: &'a [u8],
    tail: [u8; 2 * BLOCK_BYTES],
    /// The part of the tail that is not hashed yet.
    tail_from: usize,
    tail_to: usize,
}

impl<'a> Lane<'a> {
    fn new(index: usize, body: &'a [u8]) -> Self {
        let (whole, rest) = body.split_at(body.len() / BLOCK_BYTES * BLOCK_BYTES);
        let mut tail = [0; 2 * BLOCK_BYTES];
        tail[..rest.len()].copy_from_slice(rest);
        tail[rest.len()] = 0x80;
        // The length stands in the last eight bytes of a block; where they are taken, in those of the next.
        let tail_to = if rest.len() < BLOCK_BYTES - 8 { BLOCK_BYTES } else { 2 * BLOCK_BYTES };
        let bits = 8 * body.len() as u64;
        tail[tail_to - 8..tail_to].copy_from_slice(&bits.to_be_bytes());
        Self { index, whole, tail, tail_from: 0, tail_to }
    }

    /// The bytes that come next, a whole number of blocks; empty when the body is done.
    fn next(&self) -> &[u8] {
        if self.whole.is_empty() { &self.tail[self.tail_from..self.tail_to] } else { self.whole }
    }

    fn advance(&mut self, bytes: usize) {
        if self.whole.is_empty() {
            self.tail_from += bytes;
        } else {
            self.whole = &self.whole[bytes..];
        }
    }
}

/// Keeps all lanes of a kernel busy: when a body is done the next takes its lane. `compress` advances each state
/// by so many blocks of the slice beside it.
fn side_by_side(bodies: &[&[u8]], compress: impl Fn(&mut [[u32; 8]], &[&[u8]], usize)) -> Vec<Digest> {
    let mut digests = vec![[0; 32]; bodies.len()];
    let mut waiting = bodies.iter().enumerate().map(|(index, body)| Lane::new(index, body));
    let mut lanes: Vec<Lane<'_>> = waiting.by_ref().take(LANES_MAX).collect();
    let mut states = vec![INITIAL; lanes.len()];
    while let Some(shortest) = lanes.iter().map(|lane| lane.next().len()).min() {
        let data: Vec<&[u8]> = lanes.iter().map(|lane| &lane.next()[..shortest]).collect();
        compress(&mut states, &data, shortest / BLOCK_BYTES);
        let mut place = 0;
        while place < lanes.len() {
            lanes[place].advance(shortest);
            if !lanes[place].next().is_empty() {
                place += 1;
                continue;
            }
            digests[lanes[place].index] = to_bytes(&states[place]);
            if let Some(next) = waiting.next() {
                (lanes[place], states[place]) = (next, INITIAL);
                place += 1;
            } else {
                lanes.swap_remove(place);
                states.swap_remove(place);
            }
        }
    }
    digests
}

fn to_bytes(state: &[u32; 8]) -> Digest {
    let mut digest = [0; 32];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn expected(bodies: &[&[u8]]) -> Vec<Digest> {
        bodies.iter().map(|body| sha2::Sha256::digest(body).into()).collect()
    }

    #[test]
    fn every_length_around_the_padding_is_right() {
        let bytes: Vec<u8> = (0..200u8).collect();
        let bodies: Vec<&[u8]> = (0..=200).map(|length| &bytes[..length]).collect();
        assert_eq!(digest_each(&bodies), expected(&bodies));
    }

    #[test]
    fn no_bodies_and_one_body_are_fine() {
        assert!(digest_each(&[]).is_empty());
        assert_eq!(digest_each(&[b"abc"]), expected(&[b"abc"]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn bodies_of_any_lengths_hash_as_alone(
            lengths in proptest::collection::vec(prop_oneof![0usize..130, 0usize..20_000], 0..40),
            seed: u64,
        ) {
            let mut random = fastrand::Rng::with_seed(seed);
            let owned: Vec<Vec<u8>> = lengths.iter().map(|length| {
                let mut body = vec![0; *length];
                random.fill(&mut body);
                body
            }).collect();
            let bodies: Vec<&[u8]> = owned.iter().map(Vec::as_slice).collect();
            let wanted = expected(&bodies);
            prop_assert_eq!(digest_each(&bodies), wanted.clone());
            #[cfg(target_arch = "x86_64")]
            for kernel in x86::Kernel::all_here() {
                let got = side_by_side(&bodies, |states, data, count| kernel.compress(states, data, count));
                prop_assert_eq!(&got, &wanted, "{:?}", kernel);
            }
        }
    }
}
