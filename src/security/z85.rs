//! Z85, the text that ZeroMQ has for keys: <https://rfc.zeromq.org/spec/32/>.
//!
//! Five characters stand for four bytes, in base 85. Writes into what the caller has, so that no
//! copy of a secret stays behind.

const DIGITS: &[u8; 85] =
    b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";

/// What each character is worth; 85 for one that is no digit.
const VALUES: [u8; 256] = {
    let mut values = [85; 256];
    let mut i = 0;
    while i < DIGITS.len() {
        values[DIGITS[i] as usize] = i as u8;
        i += 1;
    }
    values
};

/// A key of 32 bytes as text.
pub(super) fn encode(bytes: &[u8; 32]) -> [u8; 40] {
    let mut text = [0; 40];
    for (four, five) in bytes.chunks_exact(4).zip(text.chunks_exact_mut(5)) {
        let mut value = four
            .iter()
            .fold(0u32, |value, byte| value << 8 | u32::from(*byte));
        for digit in five.iter_mut().rev() {
            *digit = DIGITS[(value % 85) as usize];
            value /= 85;
        }
    }
    text
}

/// Fills `bytes` from the text of a key; `None`, and nothing to be relied on there, for what is none.
pub(super) fn decode(text: &[u8], bytes: &mut [u8; 32]) -> Option<()> {
    if text.len() != 40 {
        return None;
    }
    for (five, four) in text.chunks_exact(5).zip(bytes.chunks_exact_mut(4)) {
        let mut value = 0u64;
        for digit in five {
            let digit = VALUES[usize::from(*digit)];
            if digit == 85 {
                return None;
            }
            value = value * 85 + u64::from(digit);
        }
        // Five digits can say more than four bytes hold.
        four.copy_from_slice(&u32::try_from(value).ok()?.to_be_bytes());
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// From the page of the format, and from the tests of libzmq.
    const KNOWN: [(&str, [u8; 32]); 2] = [
        (
            "JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6",
            [
                0x8E, 0x0B, 0xDD, 0x69, 0x76, 0x28, 0xB9, 0x1D, 0x8F, 0x24, 0x55, 0x87, 0xEE, 0x95,
                0xC5, 0xB0, 0x4D, 0x48, 0x96, 0x3F, 0x79, 0x25, 0x98, 0x77, 0xB4, 0x9C, 0xD9, 0x06,
                0x3A, 0xEA, 0xD3, 0xB7,
            ],
        ),
        (
            "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7",
            [
                0x54, 0xFC, 0xBA, 0x24, 0xE9, 0x32, 0x49, 0x96, 0x93, 0x16, 0xFB, 0x61, 0x7C, 0x87,
                0x2B, 0xB0, 0xC1, 0xD1, 0xFF, 0x14, 0x80, 0x04, 0x27, 0xC5, 0x94, 0xCB, 0xFA, 0xCF,
                0x1B, 0xC2, 0xD6, 0x52,
            ],
        ),
    ];

    #[test]
    fn known_keys_read_and_write_as_libzmq_does() {
        for (text, key) in KNOWN {
            let mut read = [0; 32];
            assert_eq!(decode(text.as_bytes(), &mut read), Some(()));
            assert_eq!(read, key);
            assert_eq!(encode(&key), text.as_bytes());
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let mut bytes = [0; 32];
        for text in [
            "",
            "short",
            &"0".repeat(39),
            &"0".repeat(41),
            &" ".repeat(40),
            &"#".repeat(40),
        ] {
            assert_eq!(decode(text.as_bytes(), &mut bytes), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_key_comes_back(key: [u8; 32]) {
            let mut back = [0; 32];
            prop_assert_eq!(decode(&encode(&key), &mut back), Some(()));
            prop_assert_eq!(back, key);
        }

        #[test]
        fn what_is_read_writes_the_same(text: [u8; 40]) {
            let mut bytes = [0; 32];
            if decode(&text, &mut bytes).is_some() {
                prop_assert_eq!(encode(&bytes), text);
            }
        }
    }
}
