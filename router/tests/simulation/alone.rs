//! The model, which is a hash, and what a request gets from it where nothing goes wrong and nobody else asks.

use lockstep_proto::TokenId;
use lockstep_router::testing::{VOCABULARY_SIZE, ids};

use crate::plan::Request;
use crate::random::mix;

/// Stands for keys and values of one position: a hash of every token up to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kv(u64);

impl Kv {
    pub(crate) const NOTHING: Self = Self(0x5A17);

    pub(crate) fn then(self, token: TokenId) -> Self {
        Self(mix(self.0 ^ mix(u64::from(token.0) + 1)))
    }

    /// What follows: mostly letters, sometimes any token, and now and then the end.
    pub(crate) fn next_token(self, seed: Option<u64>) -> TokenId {
        let drawn = mix(self.0 ^ seed.map_or(0, |seed| mix(seed ^ 0xD7A3)));
        let (kind, rest) = (drawn % 24, drawn >> 8);
        TokenId(match kind {
            0 => ids::IM_END,
            1..=3 => (rest % u64::from(VOCABULARY_SIZE)) as u32,
            _ => u32::from(b'a') + (rest % 26) as u32,
        })
    }

    pub(crate) fn logprob(self, token: TokenId) -> f32 {
        -((self.then(token).0 % 1000) as f32) / 100.0
    }
}

/// Why an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Length,
    EosToken,
    Stop,
}

/// What a request is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) tokens: Vec<u32>,
    pub(crate) text: String,
    pub(crate) end: End,
}

impl Answer {
    pub(crate) fn of(request: &Request) -> Self {
        let mut kv = request.prompt.bytes().fold(Kv::NOTHING, |kv, byte| kv.then(TokenId(byte.into())));
        let (mut tokens, mut text) = (Vec::new(), Vec::new());
        let end = loop {
            let drawn = kv.next_token(request.seed);
            let token = if request.grammar { allowed_from(drawn, text.len()) } else { drawn };
            tokens.push(token.0);
            text.extend_from_slice(bytes_of(token));
            if let Some(stop) = request.stop
                && let Some(at) = text.windows(stop.len()).position(|found| found == stop.as_bytes())
            {
                text.truncate(at + stop.len());
                break End::Stop;
            }
            if token.0 == ids::IM_END {
                break End::EosToken;
            }
            if tokens.len() as u64 == request.max_new_tokens {
                break End::Length;
            }
            kv = kv.then(token);
        };
        Self { tokens, text: String::from_utf8_lossy(&text).into_owned(), end }
    }
}

impl End {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::EosToken => "eos_token",
            Self::Stop => "stop_sequence",
        }
    }
}

/// The bytes of text of each token of the test vocabulary; none of special ones.
fn bytes_of(token: TokenId) -> &'static [u8] {
    static BYTES: [u8; 256] = {
        let mut bytes = [0; 256];
        let mut at = 0;
        while at < 256 {
            bytes[at] = at as u8;
            at += 1;
        }
        bytes
    };
    match token.0 {
        ids::AB => b"ab",
        ids::FULL_STOP_BREAK => b".\n\n",
        ids::END_MARK => b"END!",
        ids::EURO_START => &"€".as_bytes()[..2],
        byte @ 0..256 => &BYTES[byte as usize..=byte as usize],
        _ => b"",
    }
}

/// The token or the next one around the vocabulary's end that [`crate::plan::GRAMMAR`] allows after so many bytes.
fn allowed_from(token: TokenId, written: usize) -> TokenId {
    let fits = |id: &u32| {
        let bytes = bytes_of(TokenId(*id));
        let is_end = *id == ids::IM_END && written == 8;
        let follow = |(place, byte): (usize, &u8)| match written + place {
            0..3 => (b'a'..=b'f').contains(byte),
            3 => *byte == b'-',
            4..8 => byte.is_ascii_digit(),
            _ => false,
        };
        is_end || (!bytes.is_empty() && bytes.iter().enumerate().all(follow))
    };
    let mut ids = (token.0..VOCABULARY_SIZE).chain(0..token.0);
    TokenId(ids.find(fits).expect("something always follows"))
}
