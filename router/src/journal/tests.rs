//! What was written is read, whatever became of the bytes; what is not needed is deleted; a disk that fails costs
//! nobody an answer.

use std::collections::BTreeSet;
use std::sync::Mutex;

use lockstep_proto::{TokenId, TokenLogprob, TokenLogprobs, Tokens};
use proptest::prelude::*;

use super::disk::Medium;
use super::record::MAGIC;
use super::*;
use crate::engine::{EngineError, FinishReason, GeneratedToken};
use crate::validation::Prompt;

fn logprobs() -> impl Strategy<Value = TokenLogprobs> {
    let rival = (any::<u32>(), -100.0..0.0f32)
        .prop_map(|(token, logprob)| TokenLogprob { token: TokenId(token), logprob });
    let logprob = prop_oneof![-100.0..0.0f32, Just(f32::NEG_INFINITY), Just(-0.0f32)];
    (any::<u32>(), logprob, prop::collection::vec(rival, 0..4))
        .prop_map(|(token, logprob, top)| TokenLogprobs { token: TokenId(token), logprob, top })
}

fn event() -> impl Strategy<Value = GenerationEvent> {
    let finish = prop_oneof![
        3 => Just(None),
        1 => Just(Some(FinishReason::StopSequence)),
        1 => Just(Some(FinishReason::EndOfSequence)),
        1 => Just(Some(FinishReason::Length)),
    ];
    let token = (logprobs(), ".{0,6}", ".{0,6}", any::<bool>(), finish).prop_map(
        |(token, text, delta, special, finish)| {
            GenerationEvent::Token(GeneratedToken { token, text, delta, special, finish })
        },
    );
    let admitted = (any::<u32>(), any::<u32>()).prop_map(|(queued, cached)| GenerationEvent::Admitted {
        queued: Duration::from_micros(u64::from(queued)),
        cached: Tokens(cached),
    });
    prop_oneof![
        6 => token,
        1 => admitted,
        1 => prop::collection::vec(logprobs(), 0..5).prop_map(GenerationEvent::Prompt),
        1 => Just(GenerationEvent::PromptDone),
    ]
}

fn beginning() -> impl Strategy<Value = Beginning> {
    let origin = (any::<u128>(), any::<u128>(), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(
        |(stream, answer, seed, calls, created)| Origin {
            stream: Uuid::from_u128(stream),
            answer: Uuid::from_u128(answer),
            seed,
            calls,
            created,
        },
    );
    let headers = prop::collection::vec(("[a-z-]{1,9}", prop::collection::vec(any::<u8>(), 0..9)), 0..4);
    let request =
        (prop::option::of(".{0,8}"), "/[a-z/]{0,12}", headers, prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(owner, path, headers, body)| KeptRequest { owner, path, headers, body });
    let prompt = (".{0,20}", prop::collection::vec(any::<u32>().prop_map(TokenId), 0..20))
        .prop_map(|(text, tokens)| Prompt { text, tokens });
    (origin, request, prop::collection::vec(prompt, 0..3), ".{0,20}").prop_map(
        |(origin, request, prompts, fingerprint)| Beginning { origin, request, prompts, fingerprint },
    )
}

fn known() -> impl Strategy<Value = KnownAnswer> {
    let headers = prop::collection::vec(("[a-z-]{1,9}", prop::collection::vec(any::<u8>(), 0..9)), 0..4);
    let pieces = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..6);
    (any::<u128>(), prop::option::of(".{0,8}"), headers, pieces).prop_map(
        |(stream, owner, headers, pieces)| KnownAnswer {
            stream: Uuid::from_u128(stream),
            owner,
            headers,
            pieces,
        },
    )
}

fn record() -> impl Strategy<Value = Record> {
    prop_oneof![
        1 => known().prop_map(|known| Record::Known(Box::new(known))),
        1 => beginning().prop_map(|beginning| Record::Begun(Box::new(beginning))),
        5 => (any::<u128>(), any::<u32>(), event()).prop_map(|(stream, place, event)| Record::Heard {
            stream: Uuid::from_u128(stream),
            place,
            event,
        }),
        1 => any::<u128>().prop_map(|stream| Record::Forgotten { stream: Uuid::from_u128(stream) }),
        1 => any::<u128>().prop_map(|stream| Record::Read { stream: Uuid::from_u128(stream) }),
    ]
}

fn written(records: &[Record]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    records.iter().for_each(|record| bytes.extend(record.encode().expect("it is kept")));
    bytes
}

/// Whether those that were read are the first of those that were written.
fn check_prefix(found: &[Record], records: &[Record]) -> Result<(), TestCaseError> {
    prop_assert!(found.len() <= records.len());
    prop_assert_eq!(found, &records[..found.len()]);
    Ok(())
}

proptest! {
    #[test]
    fn what_was_written_is_read(records in prop::collection::vec(record(), 0..12)) {
        let segment = parse(&written(&records));
        prop_assert_eq!(segment.torn_bytes, 0);
        prop_assert_eq!(segment.records, records);
    }

    /// A process that dies writes the beginning of something.
    #[test]
    fn a_torn_tail_costs_its_record_only(
        records in prop::collection::vec(record(), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let bytes = written(&records);
        let cut = cut.index(bytes.len());
        let segment = parse(&bytes[..cut]);
        check_prefix(&segment.records, &records)?;
        let whole = written(&segment.records).len();
        prop_assert!(cut < MAGIC.len() || whole + segment.torn_bytes == cut);
    }

    /// Whatever a disk makes of the bytes: what comes before is read, and nothing else is.
    #[test]
    fn damage_ends_what_is_read(
        records in prop::collection::vec(record(), 1..8),
        at in any::<prop::sample::Index>(),
        flipped in 1u8..,
        inserted in prop::collection::vec(any::<u8>(), 0..5),
    ) {
        let bytes = written(&records);
        let at = at.index(bytes.len());
        let mut damaged = bytes.clone();
        damaged[at] ^= flipped;
        check_prefix(&parse(&damaged).records, &records)?;
        let mut longer = bytes;
        longer.splice(at..at, inserted);
        check_prefix(&parse(&longer).records, &records)?;
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        parse(&bytes);
        // With a magic number and a checksum that are right.
        let mut framed = MAGIC.to_vec();
        framed.extend((bytes.len() as u32).to_le_bytes());
        framed.extend(crc32fast::hash(&bytes).to_le_bytes());
        framed.extend(&bytes);
        let segment = parse(&framed);
        prop_assert!(segment.records.len() <= 1);
    }
}

fn begun(stream: u128) -> Record {
    let id = Uuid::from_u128(stream);
    let origin = Origin { stream: id, answer: id, seed: 1, calls: 2, created: 3 };
    let request = KeptRequest { owner: None, path: "/".to_owned(), headers: Vec::new(), body: Vec::new() };
    let fingerprint = "test".to_owned();
    Record::Begun(Box::new(Beginning { origin, request, prompts: Vec::new(), fingerprint }))
}

fn heard(stream: u128, event: GenerationEvent) -> Record {
    Record::Heard { stream: Uuid::from_u128(stream), place: 0, event }
}

#[test]
fn a_failure_is_not_written_down() {
    let failed = GenerationEvent::Failed(EngineError::Stopping);
    assert_eq!(heard(1, failed).encode(), None);
}

#[test]
fn streams_are_recovered_as_they_were_left() {
    let done = || GenerationEvent::PromptDone;
    let admitted = GenerationEvent::Admitted { queued: Duration::ZERO, cached: Tokens(3) };
    let found = vec![
        Found { number: 1, records: vec![begun(1), begun(2), begun(3), begun(5)], is_fresh: false },
        Found {
            number: 2,
            // Of the fourth nothing but this is left.
            records: vec![heard(1, admitted.clone()), heard(4, done()), heard(2, done())],
            is_fresh: true,
        },
        Found {
            number: 3,
            records: vec![
                heard(1, done()),
                Record::Forgotten { stream: Uuid::from_u128(2) },
                Record::Read { stream: Uuid::from_u128(5) },
                // Of these nothing is there to read.
                Record::Read { stream: Uuid::from_u128(2) },
                Record::Read { stream: Uuid::from_u128(6) },
            ],
            is_fresh: true,
        },
    ];
    let (recovered, mut shelf) = recover(found);
    let [Left::Begun(first), Left::Begun(silent)] = &recovered[..] else { panic!("{recovered:?}") };
    assert_eq!(first.beginning.origin.stream, Uuid::from_u128(1));
    assert_eq!(first.events, [(0, admitted), (0, done())]);
    assert_eq!(
        silent.beginning.origin.stream,
        Uuid::from_u128(5),
        "it was read lately, though nothing was told"
    );
    assert_eq!(silent.events, []);
    shelf.open(4);
    assert_eq!(shelf.take_unneeded(), Vec::<u64>::new());
    shelf.forget(Uuid::from_u128(1));
    shelf.forget(Uuid::from_u128(5));
    assert_eq!(shelf.take_unneeded(), [1, 2, 3], "what is stale or nobody's holds nothing up");
}

/// Segments in memory, on a disk that takes so many appends.
#[derive(Clone, Default)]
struct Fake {
    segments: Arc<Mutex<BTreeSet<u64>>>,
    bytes: Arc<Mutex<Vec<u8>>>,
    calls: Arc<Mutex<Vec<String>>>,
    room: Option<usize>,
}

impl Fake {
    fn calls(&self) -> Vec<String> {
        self.calls.lock().expect("nobody panics with it").clone()
    }

    fn note(&self, call: String) {
        self.calls.lock().expect("nobody panics with it").push(call);
    }
}

impl Medium for Fake {
    fn segments(&self) -> io::Result<Vec<Stored>> {
        Ok(Vec::new())
    }

    fn begin(&mut self, number: u64) -> io::Result<()> {
        self.note(format!("begin {number}"));
        self.segments.lock().expect("nobody panics with it").insert(number);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.note(format!("append {}", bytes.len()));
        let mut all = self.bytes.lock().expect("nobody panics with it");
        if self.room.is_some_and(|room| all.len() + bytes.len() > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        all.extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.note("sync".to_owned());
        Ok(())
    }

    fn delete(&mut self, number: u64) -> io::Result<()> {
        self.segments.lock().expect("nobody panics with it").remove(&number);
        Ok(())
    }
}

fn write(stream: u128, bytes: usize) -> (Command, oneshot::Receiver<()>) {
    let (done, written) = oneshot::channel();
    (Command::Write { stream: Uuid::from_u128(stream), bytes: vec![0; bytes], done }, written)
}

fn writer(medium: &Fake) -> (Writer<Fake>, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new().expect("buckets are fine"));
    let shelf = shelf::Shelf::default();
    let writer = Writer::begin(medium.clone(), shelf, Fsync::Always, Arc::clone(&metrics));
    (writer.expect("there is room"), metrics)
}

#[test]
fn a_full_disk_turns_the_journal_off_and_keeps_nobody_waiting() {
    let medium = Fake { room: Some(100), ..Fake::default() };
    let (mut writer, metrics) = writer(&medium);
    assert!(metrics.render().contains("lockstep_journal_on 1"));
    for _ in 0..5 {
        let (command, mut written) = write(1, 40);
        writer.on_batch(vec![command]);
        written.try_recv().expect("it is told");
    }
    assert_eq!(medium.bytes.lock().expect("nobody panics with it").len(), 80);
    assert!(metrics.render().contains("lockstep_journal_on 0"));
}

#[test]
fn segments_follow_each_other_and_go_with_their_streams() {
    let medium = Fake::default();
    let (mut writer, _) = writer(&medium);
    let segments =
        || medium.segments.lock().expect("nobody panics with it").iter().copied().collect::<Vec<_>>();
    for stream in 1..=4 {
        let (command, _written) = write(stream, 17 << 20);
        writer.on_batch(vec![command]);
    }
    assert_eq!(segments(), [1, 2, 3, 4, 5]);
    let forget = |stream| Command::Forget { stream: Uuid::from_u128(stream) };
    writer.on_batch(vec![forget(2)]);
    assert_eq!(segments(), [1, 2, 3, 4, 5], "the first may still be taken up");
    writer.on_batch(vec![forget(1), forget(3)]);
    assert_eq!(segments(), [4, 5]);
    let read = |stream| Command::Read { stream: Uuid::from_u128(stream), done: oneshot::channel().0 };
    writer.on_batch(vec![read(4)]);
    writer.on_batch(vec![forget(4), read(4)]);
    writer.on_batch(vec![read(4), read(7)]);
    let (command, _written) = write(8, 17 << 20);
    writer.on_batch(vec![command, forget(8)]);
    assert_eq!(segments(), [6], "nothing is kept for the sake of a stream that nobody may take up");
}

/// What is written later never outlives what was written before: a stream would have a hole.
#[test]
fn a_segment_is_on_the_disk_before_the_next_begins() {
    let medium = Fake::default();
    let metrics = Arc::new(Metrics::new().expect("buckets are fine"));
    let writer = Writer::begin(medium.clone(), shelf::Shelf::default(), Fsync::Never, metrics);
    let mut writer = writer.expect("there is room").with_segments_of(100);
    for bytes in [60, 60, 60] {
        let (command, _written) = write(1, bytes);
        writer.on_batch(vec![command]);
    }
    assert_eq!(medium.calls(), ["begin 1", "append 60", "append 60", "sync", "begin 2", "append 60"]);
}

#[test]
fn a_folder_has_one_owner() {
    let place = tempfile::tempdir().expect("a folder");
    let first = Folder::open(place.path()).expect("it can be used").expect("nobody has it");
    assert!(Folder::open(place.path()).expect("it can be used").is_none());
    drop(first);
    assert!(Folder::open(place.path()).expect("it can be used").is_some());
}
