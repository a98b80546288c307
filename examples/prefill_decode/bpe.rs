//! Text to token ids and back: byte-level byte-pair encoding as GPT-2 does it, with SmolLM's way
//! of splitting: every digit by itself, words with the one space before them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::gguf::{Gguf, GgufError};
use crate::letters::is_letter;

/// How GGUF marks tokens that stand for themselves, such as `<|im_start|>`.
const CONTROL: i128 = 3;

/// Which rule a merge is (lower goes first) and the token that it makes.
#[derive(Clone, Copy)]
struct Merge {
    rank: usize,
    id: u32,
}

/// The vocabulary and its merges.
pub struct Bpe {
    /// The bytes each token stands for.
    pieces: Vec<Vec<u8>>,
    /// The token of each byte; a few bytes, which no UTF-8 text has, are without.
    bytes: Vec<Option<u32>>,
    merges: HashMap<(u32, u32), Merge>,
    control: Vec<u32>,
}

impl Bpe {
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, GgufError> {
        for (key, wanted) in [("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "smollm")] {
            if gguf.text(key)? != wanted {
                let wanted = "the kind of tokenizer known here (gpt2, smollm)";
                return Err(GgufError::Unexpected { key: key.into(), wanted });
            }
        }
        let tokens = gguf.texts("tokenizer.ggml.tokens")?;
        let kinds = gguf.integers("tokenizer.ggml.token_type")?;
        let merges = gguf.texts("tokenizer.ggml.merges")?;
        let control = (0..tokens.len()).filter(|&id| kinds.get(id) == Some(&CONTROL));
        let control = control.map(|id| id as u32).collect();
        Self::new(&tokens, &merges, control).ok_or_else(|| GgufError::Unexpected {
            key: "tokenizer.ggml.merges".into(),
            wanted: "a list of pairs of known tokens",
        })
    }

    /// Tokens and merges in GPT-2's spelling, where every byte is a visible character; nothing if
    /// a merge names a token that isn't there.
    fn new(tokens: &[&str], merges: &[&str], control: Vec<u32>) -> Option<Self> {
        let ids: HashMap<&str, u32> = tokens.iter().copied().zip(0..).collect();
        let merge = |(rank, text): (usize, &&str)| {
            let (left, right) = text.split_once(' ')?;
            let id = *ids.get(format!("{left}{right}").as_str())?;
            Some(((*ids.get(left)?, *ids.get(right)?), Merge { rank, id }))
        };
        let spelling = Spelling::new();
        let letter = |byte: usize| ids.get(spelling.letters[byte].to_string().as_str()).copied();
        Some(Self {
            pieces: tokens.iter().map(|token| spelling.bytes_of(token)).collect(),
            bytes: (0..256).map(letter).collect(),
            merges: merges.iter().enumerate().map(merge).collect::<Option<_>>()?,
            control,
        })
    }

    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// The bytes that a token stands for, often not whole characters; none for an unknown id.
    pub fn piece(&self, id: u32) -> &[u8] {
        self.pieces.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// The control token written like this.
    pub fn control(&self, text: &str) -> Option<u32> {
        self.control.iter().copied().find(|&id| self.piece(id) == text.as_bytes())
    }

    /// Ids of plain text. The names of control tokens get no special treatment, so that nobody
    /// can end the user's turn from inside it.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (word, tail) = rest.split_at(word_length(rest));
            self.encode_word(word, &mut ids);
            rest = tail;
        }
        ids
    }

    /// Merges the neighbours of the lowest rank, leftmost first, until no rule applies.
    fn encode_word(&self, word: &str, ids: &mut Vec<u32>) {
        let mut chain = Chain::new(word.bytes().filter_map(|byte| self.bytes[byte as usize]));
        let mut candidates = BinaryHeap::new();
        let candidate = |chain: &Chain, left: usize| {
            let (pair, _) = chain.pair(left)?;
            Some(Reverse((self.merges.get(&pair)?.rank, left, pair)))
        };
        candidates.extend((0..chain.links.len()).filter_map(|left| candidate(&chain, left)));
        while let Some(Reverse((_, left, pair))) = candidates.pop() {
            // A candidate goes stale when one of its sides was merged elsewhere in between.
            let Some((now, right)) = chain.pair(left) else { continue };
            if now == pair {
                chain.join(left, right, self.merges[&pair].id);
                let before = chain.links[left].before;
                candidates.extend(before.and_then(|before| candidate(&chain, before)));
                candidates.extend(candidate(&chain, left));
            }
        }
        ids.extend(chain.links.iter().filter_map(|link| link.id));
    }
}

/// A word's tokens as a chain: joining two leaves every other's place as it was.
struct Chain {
    links: Vec<Link>,
}

struct Link {
    /// None: joined to the link before it.
    id: Option<u32>,
    before: Option<usize>,
    after: Option<usize>,
}

impl Chain {
    fn new(ids: impl Iterator<Item = u32>) -> Self {
        let link = |(at, id): (usize, u32)| Link {
            id: Some(id),
            before: at.checked_sub(1),
            after: Some(at + 1),
        };
        let mut links: Vec<Link> = ids.enumerate().map(link).collect();
        if let Some(last) = links.last_mut() {
            last.after = None;
        }
        Self { links }
    }

    /// The tokens at `left` and after it, and the place of the latter.
    fn pair(&self, left: usize) -> Option<((u32, u32), usize)> {
        let right = self.links[left].after?;
        Some(((self.links[left].id?, self.links[right].id?), right))
    }

    fn join(&mut self, left: usize, right: usize, id: u32) {
        let after = self.links[right].after;
        self.links[right] = Link { id: None, before: None, after: None };
        self.links[left].id = Some(id);
        self.links[left].after = after;
        if let Some(after) = after {
            self.links[after].before = Some(left);
        }
    }
}

/// Bytes of the first word of a text that isn't empty. The rules are those of GPT-2's pattern
/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`, applied to what lies
/// between digits, each of which is a word of its own.
fn word_length(text: &str) -> usize {
    let mut chars = text.chars();
    let first = chars.next().unwrap_or_default();
    if first.is_numeric() {
        return first.len_utf8();
    }
    if let Some(suffix) = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"]
        .iter()
        .find(|suffix| text.starts_with(**suffix))
    {
        return suffix.len();
    }
    let word = text.strip_prefix(' ').unwrap_or(text);
    let space = text.len() - word.len();
    for class in [is_letter, is_sign] {
        let length = run(word, class);
        if length > 0 {
            return space + length;
        }
    }
    spaces(text)
}

/// White space leaves its last character to the word after it, if one follows (a digit doesn't
/// count: it was cut off before) and something stays.
fn spaces(text: &str) -> usize {
    let length = run(text, char::is_whitespace);
    let last = text[..length].chars().next_back().map_or(0, char::len_utf8);
    let is_followed = text[length..].chars().next().is_some_and(|next| !next.is_numeric());
    if is_followed && length > last { length - last } else { length }
}

fn is_sign(c: char) -> bool {
    !c.is_whitespace() && !c.is_numeric() && !is_letter(c)
}

fn run(text: &str, class: fn(char) -> bool) -> usize {
    text.find(|c| !class(c)).unwrap_or(text.len())
}

/// GPT-2's spelling of bytes as visible characters: those that are visible stand for themselves,
/// the others for the characters from U+0100 on, in order.
struct Spelling {
    letters: [char; 256],
    bytes: HashMap<char, u8>,
}

impl Spelling {
    fn new() -> Self {
        let mut others = '\u{100}'..;
        let mut letter = |byte: usize| match byte as u8 {
            visible @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(visible),
            _ => others.next().unwrap_or_default(),
        };
        let letters = std::array::from_fn(&mut letter);
        Self { letters, bytes: letters.iter().copied().zip(0..=255).collect() }
    }

    fn bytes_of(&self, token: &str) -> Vec<u8> {
        let bytes = token.chars().map(|letter| self.bytes.get(&letter).copied());
        bytes.collect::<Option<_>>().unwrap_or_else(|| token.as_bytes().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&str> {
        let mut words = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (word, tail) = rest.split_at(word_length(rest));
            words.push(word);
            rest = tail;
        }
        words
    }

    #[test]
    fn splits_as_gpt2_but_digit_by_digit() {
        assert_eq!(words("don't say 'tis"), ["don", "'t", " say", " '", "tis"]);
        assert_eq!(words("in 2024, 1½"), ["in", " ", "2", "0", "2", "4", ",", " ", "1", "½"]);
        assert_eq!(words("a  b"), ["a", " ", " b"]);
        assert_eq!(words("a  5"), ["a", "  ", "5"]);
        assert_eq!(words("x \n\n y\n"), ["x", " \n\n", " y", "\n"]);
        assert_eq!(words("\tz  "), ["\t", "z", "  "]);
        assert_eq!(words("हिन्"), ["ह", "ि", "न", "्"]);
    }

    /// Merges that make `abc` two ways: the rank decides, then the place.
    fn tiny() -> Bpe {
        let tokens = ["a", "b", "c", "Ġ", "bc", "ab", "abc", "Ġa", "<end>"];
        Bpe::new(&tokens, &["b c", "a b", "a bc", "Ġ a"], vec![8]).unwrap()
    }

    #[test]
    fn lower_ranks_merge_first_and_leftmost_of_equals() {
        assert_eq!(tiny().encode("abc"), [6]);
        assert_eq!(tiny().encode("abab"), [5, 5]);
        assert_eq!(tiny().encode("aab"), [0, 5]);
        assert_eq!(tiny().encode("c a bcbc"), [2, 7, 3, 4, 4]);
    }

    #[test]
    fn control_tokens_are_not_made_from_text() {
        let bpe = tiny();
        assert_eq!(bpe.control("<end>"), Some(8));
        assert_eq!(bpe.control("abc"), None);
        assert!(!bpe.encode("<end>").contains(&8));
    }

    #[test]
    fn pieces_are_bytes() {
        assert_eq!(tiny().piece(7), b" a");
        assert_eq!(tiny().piece(99), b"");
    }

    #[test]
    fn a_merge_of_unknown_tokens_is_refused() {
        assert!(Bpe::new(&["a", "b"], &["a b"], vec![]).is_none());
        assert!(Bpe::new(&["a", "b", "ab"], &["ab"], vec![]).is_none());
    }

    /// A long word costs n log n steps; with n² this would take minutes.
    #[test]
    fn a_word_of_any_length_is_encoded() {
        assert_eq!(tiny().encode(&"abc".repeat(100_000)).len(), 100_000);
    }

    #[test]
    fn ids_are_those_of_the_reference() {
        let Some(gguf) = crate::tests::model_file() else { return };
        let bpe = Bpe::from_gguf(&gguf).unwrap();
        // Made by Hugging Face's `tokenizers` 0.23 from this vocabulary and these merges.
        let known: [(&str, &[u32]); 9] = [
            ("Hello, world!", &[19556, 28, 905, 17]),
            ("What is the capital of France?", &[1780, 314, 260, 3575, 282, 4649, 47]),
            ("  leading and trailing  ", &[216, 2899, 284, 35079, 256]),
            ("a  5 b   6\n\n7\t8 ", &[81, 256, 37, 278, 333, 38, 1116, 39, 197, 40, 216]),
            (
                "don't we'll I'VE they're it's 'tis 's",
                &[12420, 982, 392, 3060, 339, 23, 18525, 502, 2316, 357, 506, 637, 34818, 637, 99],
            ),
            (
                "naïve café — “quotes” … ",
                &[3546, 46494, 37366, 1841, 619, 385, 2346, 573, 5548, 216],
            ),
            (
                "हिन्दी में लिखना",
                &[
                    4300, 134, 27011, 30658, 16525, 44757, 37189, 12335, 123, 30581, 35691, 12335,
                    127, 27011, 4300, 240, 30658, 18075,
                ],
            ),
            (
                "😀👩\u{200d}👩\u{200d}👧 emoji",
                &[
                    10813, 242, 218, 10813, 235, 119, 321, 231, 10813, 235, 119, 321, 231, 10813,
                    235, 117, 649, 33777,
                ],
            ),
            (
                "\u{a0}nbsp\u{3000}ideo \u{2003}x",
                &[15442, 94, 32093, 12109, 218, 8496, 216, 321, 221, 104],
            ),
        ];
        for (text, ids) in known {
            assert_eq!(bpe.encode(text), ids, "{text:?}");
            let bytes: Vec<u8> = ids.iter().flat_map(|&id| bpe.piece(id).to_vec()).collect();
            assert_eq!(String::from_utf8(bytes).unwrap(), text);
        }
    }
}
