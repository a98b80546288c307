//! What the user chooses; the processes that the example starts are given the same.

use std::time::Duration;

use kvrail::{Engine, PathKind, Protocol};

use crate::crew::Role;
use crate::llama::{Failure, Pace, PromptError};
use crate::messages::Ask;
use crate::weights::Model;

/// Asked in turn where the user asks nothing. The first is long enough to be worth a transfer.
const PROMPTS: [&str; 3] = [
    "Twice a day the sea rises and falls along most coasts. The moon pulls at the water on the \
     side of the earth that faces it, and a little less at the earth itself, and less again at \
     the water on the far side; so the sea bulges on both sides, and the turning earth carries \
     every coast through both bulges. The sun does the same with under half the strength. When \
     sun and moon stand in one line, at new and at full moon, their pulls add up to spring \
     tides, which rise highest and fall lowest; when they stand at a right angle, the weaker neap \
     tides follow. In a narrowing bay the water has nowhere to go but up, and the tide may rise \
     by more than ten metres, while an almost closed sea hardly feels it. Summarise this in \
     one sentence.",
    "What is the capital of France?",
    "Write three sentences about a train that crosses a bridge at night.",
];

/// What to ask, and how the answer is computed and carried.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// What to ask the model, instead of questions of its own
    #[arg(long, global = true)]
    pub prompt: Option<String>,
    /// How many questions to ask
    #[arg(long, global = true, default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub requests: u16,
    /// How the KV cache travels
    #[arg(long, global = true, value_enum, default_value_t = Path::Auto)]
    pub path: Path,
    /// With --path rdma: the device of prefill and of decode, or one for both; by default each
    /// takes all that the host has
    #[arg(long, global = true, value_name = "DEVICE", value_delimiter = ',')]
    pub device_name: Vec<String>,
    /// How much of the KV cache travels at a time
    #[arg(long, global = true, value_enum, default_value_t = Ship::Layer)]
    pub ship: Ship,
    /// Tokens to answer with, at most
    #[arg(long, global = true, default_value_t = 64)]
    pub max_tokens: usize,
    /// Prompt tokens computed at once
    #[arg(long, global = true, default_value_t = Pace::default().chunk_tokens)]
    pub chunk_tokens: usize,
    /// Threads that share the prefill
    #[arg(long, global = true, default_value_t = Pace::default().threads)]
    pub threads: usize,
    /// Use random weights: nothing is fetched, and the answers are nonsense
    #[arg(long, global = true)]
    pub random: bool,
    /// Flip one bit of the KV cache on its way: the hashes must differ then
    #[arg(long, global = true)]
    pub flip_bit: bool,
    /// Before each question, abort another when so many of its layers have arrived, and use its
    /// memory for the question at once
    #[arg(long, global = true, value_name = "LAYERS")]
    pub abort_after: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Path {
    /// Two processes, and what kvrail chooses between them
    Auto,
    /// Two processes, over TCP
    Tcp,
    /// Two processes, over RDMA
    Rdma,
    /// One process with one engine, which is its own peer
    Local,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Ship {
    /// Each layer of the blocks, as soon as it is computed
    Layer,
    /// Whole blocks, once the prompt is computed
    Block,
}

impl Options {
    pub fn pace(&self) -> Pace {
        Pace { chunk_tokens: self.chunk_tokens, threads: self.threads }
    }

    /// An engine that takes the path which was asked for.
    pub fn engine(&self, role: Role) -> kvrail::Result<Engine> {
        // The prefill computes while a layer moves: it waits for none.
        let builder = Engine::builder().spin_caller(Duration::ZERO);
        let builder = builder.same_host(self.path == Path::Auto);
        match self.path {
            Path::Rdma => builder.protocol(Protocol::Rdma).devices(self.devices(role)),
            Path::Tcp => builder.protocol(Protocol::Tcp),
            Path::Auto | Path::Local => builder,
        }
        .start()
    }

    /// The RDMA devices of a role; none stands for all of them.
    fn devices(&self, role: Role) -> &[String] {
        match (&self.device_name[..], role) {
            ([prefill, _], Role::Prefill) => std::slice::from_ref(prefill),
            ([_, decode], Role::Decode) => std::slice::from_ref(decode),
            (both, _) => both,
        }
    }

    /// What can't be done here, whatever the model.
    pub fn check(&self) -> Result<(), Failure> {
        if self.path != Path::Rdma && !self.device_name.is_empty() {
            return Err("--device-name goes with --path rdma".into());
        }
        if self.device_name.len() > 2 {
            return Err("--device-name takes one device, or prefill's and decode's".into());
        }
        if self.path == Path::Rdma && !cfg!(feature = "rdma") {
            return Err("--path rdma needs a build that can: cargo run --release --features rdma \
                        --example prefill_decode"
                .into());
        }
        Ok(())
    }

    /// The layers after which to abort, if that can be done.
    pub fn abort_after(&self, layers: usize) -> Result<Option<usize>, Failure> {
        match self.abort_after {
            Some(_) if self.ship == Ship::Block => {
                Err("--abort-after counts layers, and whole blocks travel: leave out --ship".into())
            }
            Some(after) if after >= layers => {
                Err(format!("all {layers} layers have arrived then: abort after fewer").into())
            }
            after => Ok(after),
        }
    }

    /// The question of a request, counted from 0.
    pub fn question(&self, request: usize) -> &str {
        self.prompt.as_deref().unwrap_or(PROMPTS[request % PROMPTS.len()])
    }

    /// The same in tokens, with as long an answer as a cache with this `room` can hold.
    pub fn ask(&self, model: &Model, request: usize, room: usize) -> Result<Ask, Failure> {
        let tokens = model.tokenizer().chat(self.question(request));
        let Some(left) = room.checked_sub(tokens.len()) else {
            return Err(PromptError::TooLong { tokens: tokens.len(), room }.into());
        };
        // The last token of an answer needs no room: it is not fed back.
        Ok(Ask { tokens, max_tokens: self.max_tokens.min(left + 1) })
    }
}

impl Path {
    /// What the path must be, where one was asked for.
    pub fn demanded(self) -> Option<PathKind> {
        match self {
            Self::Auto => None,
            Self::Tcp => Some(PathKind::Tcp),
            Self::Rdma => Some(PathKind::Rdma),
            Self::Local => Some(PathKind::Local),
        }
    }
}

impl Ship {
    /// The parts of a block that travel by themselves.
    pub fn pieces(self, layers: usize) -> usize {
        match self {
            Self::Layer => layers,
            Self::Block => 1,
        }
    }

    /// The piece that `layer` is in.
    pub fn piece_of(self, layer: usize) -> usize {
        match self {
            Self::Layer => layer,
            Self::Block => 0,
        }
    }
}

#[cfg(test)]
impl Options {
    /// For the tiny model.
    pub fn tiny(prompt: &str, max_tokens: usize) -> Self {
        Self {
            prompt: Some(prompt.into()),
            requests: 1,
            path: Path::Auto,
            device_name: Vec::new(),
            ship: Ship::Layer,
            max_tokens,
            chunk_tokens: Pace::default().chunk_tokens,
            threads: 1,
            random: true,
            flip_bit: false,
            abort_after: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_is_in_a_piece_and_every_piece_has_a_layer() {
        for ship in [Ship::Layer, Ship::Block] {
            let mut pieces: Vec<_> = (0..5).map(|layer| ship.piece_of(layer)).collect();
            pieces.dedup();
            assert!(pieces.into_iter().eq(0..ship.pieces(5)));
        }
    }

    #[test]
    fn an_answer_is_cut_to_the_room_that_is_left() {
        let model = Model::random(crate::shape::Shape::TINY, 1);
        let ask = Options::tiny("abcd", 5).ask(&model, 0, 6).unwrap();
        assert_eq!((ask.tokens.len(), ask.max_tokens), (4, 3));
        assert_eq!(Options::tiny("abcd", 2).ask(&model, 0, 6).unwrap().max_tokens, 2);
        let failure = Options::tiny("abcd", 2).ask(&model, 0, 3).unwrap_err();
        assert!(failure.to_string().contains("room for 3"), "{failure}");
    }

    #[test]
    fn each_role_has_its_device_or_both_have_the_same() {
        let with = |path, names: &[&str]| Options {
            path,
            device_name: names.iter().map(|&name| name.into()).collect(),
            ..Options::tiny("why?", 1)
        };
        let devices = |names: &[&str]| {
            let options = with(Path::Rdma, names);
            [Role::Prefill, Role::Decode].map(|role| options.devices(role).join("+"))
        };
        assert_eq!(devices(&["a", "b"]), ["a", "b"]);
        assert_eq!(devices(&["a"]), ["a", "a"]);
        assert_eq!(devices(&[]), ["", ""]);
        let why = |path, names: &[&str]| with(path, names).check().unwrap_err().to_string();
        assert!(why(Path::Tcp, &["a"]).contains("--path rdma"));
        assert!(why(Path::Rdma, &["a", "b", "c"]).contains("one device"));
        assert!(with(Path::Auto, &[]).check().is_ok());
        match with(Path::Rdma, &["a"]).check() {
            Ok(()) => assert!(cfg!(feature = "rdma")),
            Err(why) => assert!(why.to_string().contains("--features rdma"), "{why}"),
        }
    }

    #[test]
    fn only_what_is_under_way_is_aborted() {
        let after = |layers| Options { abort_after: Some(layers), ..Options::tiny("why?", 1) };
        assert_eq!(Options::tiny("why?", 1).abort_after(3).unwrap(), None);
        assert_eq!(after(0).abort_after(3).unwrap(), Some(0));
        assert_eq!(after(2).abort_after(3).unwrap(), Some(2));
        assert!(after(3).abort_after(3).unwrap_err().to_string().contains("all 3 layers"));
        let blocks = Options { ship: Ship::Block, ..after(1) };
        assert!(blocks.abort_after(3).unwrap_err().to_string().contains("--ship"));
    }

    #[test]
    fn questions_take_turns_unless_one_is_given() {
        let given = Options::tiny("why?", 1);
        assert_eq!((given.question(0), given.question(1)), ("why?", "why?"));
        let own = Options { prompt: None, ..given };
        assert_eq!(own.question(1), "What is the capital of France?");
        assert_eq!(own.question(PROMPTS.len()), own.question(0));
    }
}
