//! Which sequences of one (connection, stream) were accepted: a bit each, in one growing bit set.

/// The set.
#[derive(Debug, Default)]
pub struct Sequences {
    words: Vec<u64>,
    count: u64,
    /// The record that last held one of these events, and the highest sequence seen in it.
    record: u64,
    last_in_record: u64,
}

impl Sequences {
    /// How many words the set would have to grow by to hold this sequence.
    pub fn growth(&self, sequence: u64) -> u64 {
        (sequence / 64 + 1).saturating_sub(self.words.len() as u64)
    }

    /// Adds a sequence; `false` if it was there before.
    #[inline]
    pub fn insert(&mut self, sequence: u64) -> bool {
        let word = (sequence / 64) as usize;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let bit = 1 << (sequence % 64);
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.count += u64::from(new);
        new
    }

    /// Notes that the record with this number (never 0) holds the sequence; `false` if a higher one of the same
    /// set came before it in the record.
    #[inline]
    pub fn in_order(&mut self, record: u64, sequence: u64) -> bool {
        if self.record != record {
            self.record = record;
            self.last_in_record = sequence;
            return true;
        }
        let in_order = sequence >= self.last_in_record;
        self.last_in_record = self.last_in_record.max(sequence);
        in_order
    }

    /// How many sequences were added.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many of the sequences below `end` were added.
    pub fn count_below(&self, end: u64) -> u64 {
        let whole = ((end / 64) as usize).min(self.words.len());
        let full: u64 = self.words[..whole].iter().map(|word| u64::from(word.count_ones())).sum();
        let partial = match self.words.get(whole) {
            Some(word) if end / 64 == whole as u64 => (word & ((1 << (end % 64)) - 1)).count_ones(),
            _ => 0,
        };
        full + u64::from(partial)
    }

    /// How many sequences below the highest one were not added.
    pub fn gaps(&self) -> u64 {
        match self.words.iter().rposition(|word| *word != 0) {
            Some(last) => last as u64 * 64 + 64 - u64::from(self.words[last].leading_zeros()) - self.count,
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn it_agrees_with_a_set_of_numbers() {
        let mut random = fastrand::Rng::with_seed(3);
        let (mut bits, mut set) = (Sequences::default(), BTreeSet::new());
        for _ in 0..5_000 {
            let sequence = random.u64(..4_000);
            assert_eq!(bits.insert(sequence), set.insert(sequence));
        }
        assert_eq!(bits.count(), set.len() as u64);
        for end in [0, 1, 63, 64, 65, 127, 128, 3_999, 4_000, 4_096, 100_000] {
            assert_eq!(bits.count_below(end), set.range(..end).count() as u64, "below {end}");
        }
        let highest = set.last().unwrap();
        assert_eq!(bits.gaps(), highest + 1 - set.len() as u64);
        assert_eq!(Sequences::default().gaps(), 0);
    }

    #[test]
    fn order_is_judged_inside_a_record_only() {
        let mut bits = Sequences::default();
        assert!(bits.in_order(1, 5) && bits.in_order(1, 5) && bits.in_order(1, 9));
        assert!(!bits.in_order(1, 8), "8 after 9");
        assert!(!bits.in_order(1, 8), "still below 9");
        assert!(bits.in_order(2, 0), "another record starts anew");
    }

    #[test]
    fn growth_is_known_before_it_happens() {
        let mut bits = Sequences::default();
        assert_eq!((bits.growth(0), bits.growth(64), bits.growth(1 << 39)), (1, 2, (1 << 33) + 1));
        bits.insert(64);
        assert_eq!((bits.growth(127), bits.growth(128)), (0, 1));
    }
}
