//! The lines of a batch on their way to disk: as they came, so that what they share with a call takes no memory twice.
//! They are put together when they are written, off the way of the calls.

use bytes::Bytes;

use crate::batch::Record;
use crate::encode;

/// A part of a batch.
#[derive(Clone, Debug)]
pub enum Part {
    /// Raw lines.
    Lines(Bytes),
    /// Records of a body, as the table has them.
    Records(Bytes, Vec<Record>),
}

/// The parts of a batch behind each other.
#[derive(Clone, Debug)]
pub struct Lines(Vec<Part>);

impl Lines {
    /// The lines of all parts.
    pub fn new(parts: Vec<Part>) -> Self {
        Self(parts)
    }

    /// Their raw bytes.
    pub fn bytes(&self) -> usize {
        let of = |part: &Part| match part {
            Part::Lines(lines) => lines.len(),
            Part::Records(_, records) => records.iter().map(|record| record.bytes as usize).sum(),
        };
        self.0.iter().map(of).sum()
    }

    /// Puts them together; nothing is copied where they are one part of lines.
    pub(crate) fn together(&mut self) -> Bytes {
        if let [Part::Lines(lines)] = &self.0[..] {
            return lines.clone();
        }
        let mut lines = Vec::with_capacity(self.bytes());
        for part in &self.0 {
            match part {
                Part::Lines(bytes) => lines.extend_from_slice(bytes),
                Part::Records(body, records) => {
                    for record in records {
                        encode::decode_record(&body[record.start as usize..record.end as usize], &mut lines);
                    }
                }
            }
        }
        let lines = Bytes::from(lines);
        self.0 = vec![Part::Lines(lines.clone())];
        lines
    }
}

impl From<Bytes> for Lines {
    fn from(lines: Bytes) -> Self {
        Self(vec![Part::Lines(lines)])
    }
}

impl From<Vec<u8>> for Lines {
    fn from(lines: Vec<u8>) -> Self {
        Bytes::from(lines).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_turned_back_into_their_lines() {
        let packing = crate::config::Config::default().packing;
        let mut encoder = encode::Encoder::new(packing, 1 << 20);
        encoder.push(b"one\n");
        encoder.push(b"two\n");
        let (json, records) = encoder.finish();
        let parts =
            vec![Part::Lines(Bytes::from_static(b"zero\n")), Part::Records(Bytes::from(json), records)];
        let mut lines = Lines::new(parts);
        assert_eq!(lines.bytes(), 13);
        assert_eq!(&lines.together()[..], b"zero\none\ntwo\n");
    }
}
