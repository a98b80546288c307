//! Shows an answer token by token.

use std::io::Write;

use crate::llama::Failure;
use crate::text::{Streamer, Tokenizer};

pub struct Typewriter<'a> {
    out: &'a mut dyn Write,
    tokenizer: &'a Tokenizer,
    streamer: Streamer,
}

impl<'a> Typewriter<'a> {
    pub fn new(out: &'a mut dyn Write, tokenizer: &'a Tokenizer) -> Self {
        Self { out, tokenizer, streamer: Streamer::default() }
    }

    pub fn push(&mut self, token: u32) -> Result<(), Failure> {
        let text = self.streamer.push(&self.tokenizer.piece(token));
        write!(self.out, "{}", printable(&text))?;
        Ok(self.out.flush()?)
    }

    /// Ends the line.
    pub fn finish(self) -> Result<(), Failure> {
        Ok(writeln!(self.out, "{}", printable(&self.streamer.finish()))?)
    }
}

/// A model with random weights says anything, which a terminal must not take for commands.
fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_appear_whole_and_commands_don_t() {
        let mut out = Vec::new();
        let mut typewriter = Typewriter::new(&mut out, &Tokenizer::Bytes);
        for byte in "é\n\x1b[2J".bytes() {
            typewriter.push(byte.into()).unwrap();
        }
        typewriter.finish().unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "é\n\u{fffd}[2J\n");
    }
}
