//! Between people and the model: prompts become ids, ids become text that can be streamed.

use crate::bpe::Bpe;
use crate::gguf::{Gguf, GgufError};

/// What SmolLM2's own chat template says to the model when nobody else does.
const SYSTEM: &str = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";

/// A model's tokenizer.
pub enum Tokenizer {
    /// An instruct model's, with the control tokens of its chat template.
    Chat { bpe: Bpe, start: u32, end: u32 },
    /// For random weights: every byte is its own id.
    Bytes,
}

impl Tokenizer {
    pub fn from_gguf(gguf: &Gguf, vocabulary: usize) -> Result<Self, GgufError> {
        let bpe = Bpe::from_gguf(gguf)?;
        if bpe.len() != vocabulary {
            let wanted = "as long as the model's vocabulary";
            return Err(GgufError::Unexpected { key: "tokenizer.ggml.tokens".into(), wanted });
        }
        let control = |text: &str| bpe.control(text).ok_or(GgufError::Missing(text.into()));
        let (start, end) = (control("<|im_start|>")?, control("<|im_end|>")?);
        Ok(Self::Chat { bpe, start, end })
    }

    /// A user's question in the form that the model was trained to answer.
    pub fn chat(&self, user: &str) -> Vec<u32> {
        let Self::Chat { bpe, start, end } = self else { return self.encode(user) };
        let mut ids = Vec::new();
        for (role, content) in [("system", SYSTEM), ("user", user)] {
            ids.push(*start);
            ids.extend(bpe.encode(&format!("{role}\n{content}")));
            ids.push(*end);
            ids.extend(bpe.encode("\n"));
        }
        ids.push(*start);
        ids.extend(bpe.encode("assistant\n"));
        ids
    }

    /// Text as it is, without a template.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        match self {
            Self::Chat { bpe, .. } => bpe.encode(text),
            Self::Bytes => text.bytes().map(u32::from).collect(),
        }
    }

    /// Whether the model says with this token that its answer is complete.
    pub fn is_end(&self, id: u32) -> bool {
        matches!(self, Self::Chat { end, .. } if *end == id)
    }

    /// The bytes of a token, often not whole characters: put them through [`Streamer`].
    pub fn piece(&self, id: u32) -> Vec<u8> {
        match self {
            Self::Chat { bpe, .. } => bpe.piece(id).to_vec(),
            Self::Bytes => match u8::try_from(id) {
                Ok(byte) => vec![byte],
                Err(_) => format!("⟨{id}⟩").into_bytes(),
            },
        }
    }
}

/// Turns tokens into text as they come, without cutting through a character.
#[derive(Default)]
pub struct Streamer {
    pending: Vec<u8>,
}

impl Streamer {
    /// The text that is complete with these bytes. What can't become UTF-8 turns into U+FFFD.
    pub fn push(&mut self, piece: &[u8]) -> String {
        self.pending.extend_from_slice(piece);
        let mut text = String::new();
        let mut taken = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            taken += chunk.valid().len();
            // An invalid chunk at the very end may be the first bytes of a character.
            let is_started = taken + chunk.invalid().len() == self.pending.len()
                && is_character_start(chunk.invalid());
            if !chunk.invalid().is_empty() && !is_started {
                text.push(char::REPLACEMENT_CHARACTER);
                taken += chunk.invalid().len();
            }
        }
        self.pending.drain(..taken);
        text
    }

    /// What is left when no more tokens come.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

/// Whether more bytes could make these a character.
fn is_character_start(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(pieces: &[&[u8]]) -> (Vec<String>, String) {
        let mut streamer = Streamer::default();
        let texts = pieces.iter().map(|piece| streamer.push(piece)).collect();
        (texts, streamer.finish())
    }

    #[test]
    fn characters_wait_until_they_are_whole() {
        let (texts, rest) = stream(&[b"a\xf0\x9f", b"\x98", b"\x80b", b"c"]);
        assert_eq!(texts, ["a", "", "😀b", "c"]);
        assert_eq!(rest, "");
    }

    #[test]
    fn nonsense_is_replaced_and_does_not_block_what_follows() {
        let (texts, rest) = stream(&[b"a\xffb", b"\xe2\x82", b"x", b"\xf0\x9f"]);
        assert_eq!(texts, ["a\u{fffd}b", "", "\u{fffd}x", ""]);
        assert_eq!(rest, "\u{fffd}");
    }

    #[test]
    fn any_cut_gives_the_same_text() {
        let text = "naïve 日本語 😀 ok";
        for cut in 0..text.len() {
            let (head, tail) = text.as_bytes().split_at(cut);
            let (texts, rest) = stream(&[head, tail]);
            assert_eq!(texts.concat() + &rest, text, "cut at {cut}");
        }
    }

    #[test]
    fn byte_ids_go_there_and_back() {
        let ids = Tokenizer::Bytes.chat("é!");
        assert_eq!(ids, [0xc3, 0xa9, 0x21]);
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| Tokenizer::Bytes.piece(id)).collect();
        assert_eq!(bytes, "é!".as_bytes());
        assert_eq!(Tokenizer::Bytes.piece(300), "⟨300⟩".as_bytes());
    }
    /// Ids made by the reference tokenizer from the model's own template.
    #[test]
    fn the_chat_template_is_the_models_own() {
        let Some(gguf) = crate::tests::model_file() else { return };
        let tokenizer = Tokenizer::from_gguf(&gguf, 49_152).unwrap();
        let ids = tokenizer.chat("What is the capital of France?");
        let system = [
            1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411,
            407, 19712, 8182, 2, 198,
        ];
        let user = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198];
        assert_eq!(ids, [&system[..], &user, &[1, 520, 9531, 198]].concat());
        assert!(tokenizer.is_end(2) && !tokenizer.is_end(1));
        let is_injected = tokenizer.chat("<|im_end|>").len() < 25 + 6;
        assert!(!is_injected, "text became a control token");
        assert!(Tokenizer::from_gguf(&gguf, 49_151).is_err());
    }
}
