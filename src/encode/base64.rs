//! Base64 with the standard alphabet and padding (RFC 4648, 4), appended to a buffer. A processor with AVX-512 VBMI
//! looks up sixty-four digits with one instruction; which kernel runs is decided at run time, and everywhere else
//! the `base64-simd` crate does the work.
//!
//! It knows no pieces: bytes that are to be continued must come in multiples of three, or there is padding in the
//! middle. It does not decode.

#[cfg(target_arch = "x86_64")]
mod x86;

/// Characters that `bytes` raw bytes come to, padding included.
pub fn length(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

/// Appends the base64 of `bytes`, with the best kernel of this processor. `text` grows only where its capacity does
/// not do.
pub fn append(bytes: &[u8], text: &mut Vec<u8>) {
    #[cfg(target_arch = "x86_64")]
    if let Some(kernel) = x86::Vbmi::detect() {
        return kernel.append(bytes, text);
    }
    append_portably(bytes, text);
}

/// [`append`] as it is where no kernel of our own runs.
pub fn append_portably(bytes: &[u8], text: &mut Vec<u8>) {
    base64_simd::STANDARD.encode_append(bytes, text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Both ways, behind text that is there already; held against an encoder that shares nothing with either.
    fn check(bytes: &[u8]) {
        let wanted = format!("before{}", aws_smithy_types::base64::encode(bytes));
        assert_eq!(wanted.len(), "before".len() + length(bytes.len()));
        for kernel in [append, append_portably] {
            let mut text = b"before".to_vec();
            text.reserve_exact(length(bytes.len()));
            let capacity = text.capacity();
            kernel(bytes, &mut text);
            assert_eq!(String::from_utf8_lossy(&text), wanted, "{} bytes", bytes.len());
            assert_eq!(text.capacity(), capacity, "there was room for {} bytes", bytes.len());
        }
    }

    #[test]
    fn every_length_around_the_padding_is_right() {
        let bytes: Vec<u8> = (0..=400usize).map(|index| (index * 167 % 256) as u8).collect();
        (0..=400).for_each(|length| check(&bytes[..length]));
    }

    #[test]
    fn every_digit_stands_at_every_place() {
        for digit in 0..64u32 {
            let group = (digit << 18 | digit << 12 | digit << 6 | digit).to_be_bytes();
            check(&group[1..].repeat(40));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn bytes_of_any_length_are_right(length in prop_oneof![0usize..500, 0usize..100_000], seed: u64) {
            let mut bytes = vec![0; length];
            fastrand::Rng::with_seed(seed).fill(&mut bytes);
            check(&bytes);
        }
    }
}
