//! The bytes of a pipe as lines with a prefix.

/// A longer line is cut: a worker that never ends one is not to fill the memory.
const LONGEST: usize = 64 << 10;
/// Between the number and a line, and the rest of one that was cut.
const BEGINS: u8 = b'|';
const GOES_ON: u8 = b'+';

/// Puts a worker's number before each of its lines, in whatever pieces they arrive. Beyond
/// that the bytes are as they were.
#[derive(Debug)]
pub(super) struct Lines {
    /// The prefix, and what has arrived of the line.
    line: Vec<u8>,
    prefix: usize,
}

impl Lines {
    /// For worker number `number` of so many: all prefixes are of one width.
    pub(super) fn new(number: usize, workers: usize) -> Self {
        let width = workers.saturating_sub(1).to_string().len();
        let line = format!("{number:width$} {} ", char::from(BEGINS)).into_bytes();
        Self { prefix: line.len(), line }
    }

    /// Takes bytes, and gives each line that they complete.
    pub(super) fn take(&mut self, bytes: &[u8], give: &mut impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let text = piece.strip_suffix(b"\n");
            self.append(text.unwrap_or(piece), give);
            if text.is_some() {
                self.complete(BEGINS, give);
            }
        }
    }

    /// Gives what has arrived of a line that will not be completed.
    pub(super) fn finish(&mut self, give: &mut impl FnMut(&[u8])) {
        if self.line.len() > self.prefix {
            self.complete(BEGINS, give);
        }
    }

    fn append(&mut self, mut text: &[u8], give: &mut impl FnMut(&[u8])) {
        loop {
            let room = self.prefix + LONGEST - self.line.len();
            let Some((fits, rest)) = text.split_at_checked(room).filter(|it| !it.1.is_empty())
            else {
                return self.line.extend(text);
            };
            self.line.extend(fits);
            self.complete(GOES_ON, give);
            text = rest;
        }
    }

    /// Gives the line, and begins the next one with that mark.
    fn complete(&mut self, next: u8, give: &mut impl FnMut(&[u8])) {
        self.line.push(b'\n');
        give(&self.line);
        self.line.truncate(self.prefix);
        self.line[self.prefix - 2] = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The lines of worker 2 that come of these pieces.
    fn lines(pieces: &[&[u8]], workers: usize) -> Vec<Vec<u8>> {
        let mut given = Vec::new();
        let mut give = |line: &[u8]| given.push(line.to_vec());
        let mut lines = Lines::new(2, workers);
        for piece in pieces {
            lines.take(piece, &mut give);
        }
        lines.finish(&mut give);
        given
    }

    #[test]
    fn each_line_has_the_number_before_it() {
        assert_eq!(
            lines(&[b"GET /\n\nend\n"], 3),
            [b"2 | GET /\n".as_slice(), b"2 | \n", b"2 | end\n"]
        );
        assert!(lines(&[b""], 3).is_empty());
    }

    #[test]
    fn the_numbers_line_up() {
        for (workers, line) in [(10, "2 | x\n"), (11, " 2 | x\n"), (101, "  2 | x\n")] {
            assert_eq!(lines(&[b"x\n"], workers), [line.as_bytes()]);
        }
    }

    #[test]
    fn a_last_line_without_an_end_gets_one() {
        assert_eq!(lines(&[b"a\nb"], 3), [b"2 | a\n", b"2 | b\n"]);
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_and_goes_on() {
        let long = vec![b'x'; LONGEST];
        let whole = [b"2 | ", &long[..], b"\n"].concat();
        assert_eq!(lines(&[&long, b"\n", b"y\n"], 3), [whole.as_slice(), b"2 | y\n"]);
        assert_eq!(lines(&[&long, b"y\n", b"z\n"], 3), [whole.as_slice(), b"2 + y\n", b"2 | z\n"]);
    }

    /// Bytes with ends of lines here and there, and now and then a line that is too long.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let short = prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200);
        let long = (any::<u8>(), LONGEST - 2..2 * LONGEST + 3)
            .prop_map(|(byte, length)| vec![byte; length]);
        let parts = prop::collection::vec(prop_oneof![9 => short, 1 => long], 0..8);
        parts.prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_lines_do_not_depend_on_the_pieces(
            bytes in bytes(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            prop_assert_eq!(lines(&pieces, 3), lines(&[&bytes], 3));
        }

        #[test]
        fn no_byte_is_lost_and_no_line_is_too_long(bytes in bytes()) {
            let mut back: Vec<u8> = Vec::new();
            for line in lines(&[&bytes], 3) {
                prop_assert!(line.len() <= LONGEST + 5);
                match line.split_at(4) {
                    (b"2 | ", text) => back.extend(text),
                    (b"2 + ", text) => {
                        prop_assert_eq!(back.pop(), Some(b'\n'), "it goes on where it was cut");
                        back.extend(text);
                    }
                    (other, _) => prop_assert!(false, "no prefix: {:?}", other),
                }
            }
            let mut expected = bytes;
            if expected.last().is_some_and(|&last| last != b'\n') {
                expected.push(b'\n');
            }
            prop_assert_eq!(back, expected);
        }
    }
}
