//! Where a JSON object ends.

/// Follows the text of one object from its opening brace on.
#[derive(Clone, Debug, Default)]
pub(super) struct ObjectEnd {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl ObjectEnd {
    /// Takes the next piece; how many of its bytes belong to the object if it ends here.
    pub(super) fn find(&mut self, piece: &str) -> Option<usize> {
        // Bytes of longer characters are none of these.
        for (at, byte) in piece.bytes().enumerate() {
            match (self.in_string, byte) {
                (true, _) if self.escaped => self.escaped = false,
                (true, b'\\') => self.escaped = true,
                (true, b'"') => self.in_string = false,
                (true, _) => {}
                (false, b'"') => self.in_string = true,
                (false, b'{' | b'[') => self.depth += 1,
                (false, b'}' | b']') => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                (false, _) => {}
            }
        }
        None
    }
}
