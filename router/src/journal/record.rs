//! What the journal knows of a stream, and how it is written.
//!
//! A segment is a magic number and records; a record is its length and its CRC-32, four bytes each, then its
//! bytes. The first record that is not whole ends what is read of a segment: a process died there.

use std::time::Duration;

use lockstep_proto::{TokenId, TokenLogprob, TokenLogprobs, Tokens};
use uuid::Uuid;

use super::codec::{Reader, Writer};
use crate::engine::{FinishReason, GeneratedToken, GenerationEvent};
use crate::validation::Prompt;

/// What a segment begins with; the last two say how records are written. A kind that is added changes
/// nothing about the others; what does not know it reads up to it.
pub(super) const MAGIC: [u8; 8] = *b"LSJRNL01";

/// Bytes before those of a record.
const FRAME_BYTES: usize = 8;

/// Longest record: a body of the usual limit and its tokens are far below.
const MAX_RECORD_BYTES: usize = 256 << 20;

/// Everything about an answer that is drawn or read off the clock when its request arrives, so that it can be
/// answered the same way again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Names the stream to clients that take it up again.
    pub stream: Uuid,
    /// Names the answer where an interface names answers.
    pub answer: Uuid,
    /// Decides the tokens where the request names no seed.
    pub seed: u64,
    /// Decides the names of calls.
    pub calls: u64,
    /// Seconds since 1970 when it arrived.
    pub created: u64,
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptRequest {
    /// The name of its key.
    pub owner: Option<String>,
    /// Its route.
    pub path: String,
    /// Its headers, without secrets.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Its body.
    pub body: Vec<u8>,
}

/// What a stream begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// What was drawn for it.
    pub origin: Origin,
    /// What was asked.
    pub request: KeptRequest,
    /// Its prompts as they were tokenized: templates may write the date into them.
    pub prompts: Vec<Prompt>,
    /// Names version, model and arithmetic: only equal ones go on with the same bytes.
    pub fingerprint: String,
}

/// An answer that was known whole before it was told, as it is sent: nothing of it is computed again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownAnswer {
    /// Names the stream to clients that take it up again.
    pub stream: Uuid,
    /// The name of the request's key.
    pub owner: Option<String>,
    /// Headers of the answer.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Its events, without their ids.
    pub pieces: Vec<Vec<u8>>,
}

/// One entry.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A stream was opened.
    Begun(Box<Beginning>),
    /// Something happened to one of its answers.
    Heard {
        /// Whose.
        stream: Uuid,
        /// Which of the answers.
        place: u32,
        /// What.
        event: GenerationEvent,
    },
    /// A stream was opened whose answer is known.
    Known(Box<KnownAnswer>),
    /// Nobody may take it up any more.
    Forgotten {
        /// Which.
        stream: Uuid,
    },
    /// Somebody read it, though nothing may have been told: its client may come back for another window.
    Read {
        /// Which.
        stream: Uuid,
    },
}

/// What is found in a segment.
#[derive(Debug, Default)]
pub struct Segment {
    /// Its whole records.
    pub records: Vec<Record>,
    /// Bytes after the last of them.
    pub torn_bytes: usize,
}

impl Record {
    /// Whose it is.
    pub fn stream(&self) -> Uuid {
        match self {
            Self::Begun(beginning) => beginning.origin.stream,
            Self::Known(known) => known.stream,
            Self::Heard { stream, .. } | Self::Forgotten { stream } | Self::Read { stream } => *stream,
        }
    }

    /// With its frame, ready to be appended. Absent where the journal keeps no such thing: a failure is not replayed.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut payload = Writer::default();
        match self {
            Self::Begun(beginning) => {
                payload.u8(1);
                write_beginning(&mut payload, beginning);
            }
            Self::Heard { stream, place, event } => {
                payload.u8(2);
                payload.u128(stream.as_u128());
                payload.u32(*place);
                write_event(&mut payload, event)?;
            }
            Self::Forgotten { stream } => {
                payload.u8(3);
                payload.u128(stream.as_u128());
            }
            Self::Known(known) => {
                payload.u8(4);
                write_known(&mut payload, known);
            }
            Self::Read { stream } => {
                payload.u8(5);
                payload.u128(stream.as_u128());
            }
        }
        let payload = payload.finish();
        if payload.len() > MAX_RECORD_BYTES {
            return None;
        }
        let mut framed = Vec::with_capacity(FRAME_BYTES + payload.len());
        framed.extend_from_slice(&u32::try_from(payload.len()).ok()?.to_le_bytes());
        framed.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
        framed.extend_from_slice(&payload);
        Some(framed)
    }

    fn decode(payload: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(payload);
        let record = match reader.u8()? {
            1 => Self::Begun(Box::new(read_beginning(&mut reader)?)),
            2 => Self::Heard {
                stream: Uuid::from_u128(reader.u128()?),
                place: reader.u32()?,
                event: read_event(&mut reader)?,
            },
            3 => Self::Forgotten { stream: Uuid::from_u128(reader.u128()?) },
            4 => Self::Known(Box::new(read_known(&mut reader)?)),
            5 => Self::Read { stream: Uuid::from_u128(reader.u128()?) },
            _ => return None,
        };
        reader.is_empty().then_some(record)
    }
}

/// Everything whole in a segment's bytes, whatever they are.
pub fn parse(bytes: &[u8]) -> Segment {
    let Some(mut rest) = bytes.strip_prefix(&MAGIC) else {
        return Segment { records: Vec::new(), torn_bytes: bytes.len() };
    };
    let mut records = Vec::new();
    while let Some((record, after)) = first_record(rest) {
        records.push(record);
        rest = after;
    }
    Segment { records, torn_bytes: rest.len() }
}

fn first_record(bytes: &[u8]) -> Option<(Record, &[u8])> {
    let (length, bytes) = bytes.split_first_chunk()?;
    let (checksum, bytes) = bytes.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (payload, after) = bytes.split_at_checked(length)?;
    if crc32fast::hash(payload) != u32::from_le_bytes(*checksum) {
        return None;
    }
    Some((Record::decode(payload)?, after))
}

fn write_beginning(out: &mut Writer, beginning: &Beginning) {
    let Beginning { origin, request, prompts, fingerprint } = beginning;
    let Origin { stream, answer, seed, calls, created } = origin;
    out.u128(stream.as_u128());
    out.u128(answer.as_u128());
    out.u64(*seed);
    out.u64(*calls);
    out.u64(*created);
    let KeptRequest { owner, path, headers, body } = request;
    out.option(owner.as_deref(), Writer::text);
    out.text(path);
    write_headers(out, headers);
    out.bytes(body);
    out.list(prompts, |out, prompt| {
        out.text(&prompt.text);
        out.list(&prompt.tokens, |out, token| out.u32(token.0));
    });
    out.text(fingerprint);
}

fn read_beginning(from: &mut Reader<'_>) -> Option<Beginning> {
    let origin = Origin {
        stream: Uuid::from_u128(from.u128()?),
        answer: Uuid::from_u128(from.u128()?),
        seed: from.u64()?,
        calls: from.u64()?,
        created: from.u64()?,
    };
    let request = KeptRequest {
        owner: from.option(Reader::text)?,
        path: from.text()?,
        headers: read_headers(from)?,
        body: from.bytes()?.to_vec(),
    };
    let prompts = from.list(|from| {
        Some(Prompt { text: from.text()?, tokens: from.list(|from| from.u32().map(TokenId))? })
    })?;
    Some(Beginning { origin, request, prompts, fingerprint: from.text()? })
}

fn write_known(out: &mut Writer, known: &KnownAnswer) {
    let KnownAnswer { stream, owner, headers, pieces } = known;
    out.u128(stream.as_u128());
    out.option(owner.as_deref(), Writer::text);
    write_headers(out, headers);
    out.list(pieces, |out, piece| out.bytes(piece));
}

fn read_known(from: &mut Reader<'_>) -> Option<KnownAnswer> {
    Some(KnownAnswer {
        stream: Uuid::from_u128(from.u128()?),
        owner: from.option(Reader::text)?,
        headers: read_headers(from)?,
        pieces: from.list(|from| from.bytes().map(<[u8]>::to_vec))?,
    })
}

fn write_headers(out: &mut Writer, headers: &[(String, Vec<u8>)]) {
    out.list(headers, |out, (name, value)| {
        out.text(name);
        out.bytes(value);
    });
}

fn read_headers(from: &mut Reader<'_>) -> Option<Vec<(String, Vec<u8>)>> {
    from.list(|from| Some((from.text()?, from.bytes()?.to_vec())))
}

/// `None` where an event is not written down.
fn write_event(out: &mut Writer, event: &GenerationEvent) -> Option<()> {
    match event {
        GenerationEvent::Admitted { queued, cached } => {
            out.u8(1);
            out.u64(u64::try_from(queued.as_micros()).unwrap_or(u64::MAX));
            out.u32(cached.0);
        }
        GenerationEvent::Prompt(tokens) => {
            out.u8(2);
            out.list(tokens, write_logprobs);
        }
        GenerationEvent::Token(GeneratedToken { token, text, delta, special, finish }) => {
            out.u8(3);
            write_logprobs(out, token);
            out.text(text);
            out.text(delta);
            out.u8(u8::from(*special));
            out.u8(match finish {
                None => 0,
                Some(FinishReason::StopSequence) => 1,
                Some(FinishReason::EndOfSequence) => 2,
                Some(FinishReason::Length) => 3,
            });
        }
        GenerationEvent::PromptDone => out.u8(4),
        GenerationEvent::Failed(_) => return None,
    }
    Some(())
}

fn read_event(from: &mut Reader<'_>) -> Option<GenerationEvent> {
    Some(match from.u8()? {
        1 => GenerationEvent::Admitted {
            queued: Duration::from_micros(from.u64()?),
            cached: Tokens(from.u32()?),
        },
        2 => GenerationEvent::Prompt(from.list(read_logprobs)?),
        3 => GenerationEvent::Token(GeneratedToken {
            token: read_logprobs(from)?,
            text: from.text()?,
            delta: from.text()?,
            special: match from.u8()? {
                0 => false,
                1 => true,
                _ => return None,
            },
            finish: match from.u8()? {
                0 => None,
                1 => Some(FinishReason::StopSequence),
                2 => Some(FinishReason::EndOfSequence),
                3 => Some(FinishReason::Length),
                _ => return None,
            },
        }),
        4 => GenerationEvent::PromptDone,
        _ => return None,
    })
}

fn write_logprobs(out: &mut Writer, token: &TokenLogprobs) {
    out.u32(token.token.0);
    out.f32(token.logprob);
    out.list(&token.top, |out, rival| {
        out.u32(rival.token.0);
        out.f32(rival.logprob);
    });
}

fn read_logprobs(from: &mut Reader<'_>) -> Option<TokenLogprobs> {
    Some(TokenLogprobs {
        token: TokenId(from.u32()?),
        logprob: from.f32()?,
        top: from.list(|from| Some(TokenLogprob { token: TokenId(from.u32()?), logprob: from.f32()? }))?,
    })
}
