//! Tokens and log-probabilities from logits that stay on a device.

use candle_core::cuda_backend::CudaStorage;
use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::{Layout, Result};

use super::gpu::Gpu;
use super::kernel::{Address, Executor, Grid, Kernel, Parameters, launch};
use super::storage::{address, of_slice, room};

/// Threads that look at a row.
const THREADS: u32 = 1024;

/// What is asked of a row, as in sampling.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct AskParameters {
    pub(crate) kind: u32,
    pub(crate) token: u32,
    pub(crate) seed: [u32; 2],
    pub(crate) choice: u32,
    pub(crate) position: u32,
    pub(crate) temperature: f32,
    pub(crate) top_k: u32,
    pub(crate) top_p: f32,
    pub(crate) typical_p: f32,
    pub(crate) min_p: f32,
    pub(crate) repetition: f32,
    pub(crate) frequency: f32,
    pub(crate) presence: f32,
    /// Where its list of penalised tokens begins, and how long it is.
    pub(crate) counted: [u32; 2],
    pub(crate) biases: [u32; 2],
    pub(crate) mask: [u32; 2],
    pub(crate) top: u32,
    pub(crate) of_warped: u32,
    /// 0, or one more than the row of the step before whose token is penalised as well.
    pub(crate) fed: u32,
}

/// [`AskParameters::kind`] of a token that is known, of the most probable one, of one that is drawn.
pub(crate) const KNOWN: u32 = 0;
pub(crate) const GREEDY: u32 = 1;
pub(crate) const DRAWN: u32 = 2;

/// A token and how often it stands in the output.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counted {
    pub(crate) token: u32,
    pub(crate) in_output: u32,
}

/// A token and what is added to its logit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Bias {
    pub(crate) token: u32,
    pub(crate) bias: f32,
}

/// What was found in a row.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) token: u32,
    pub(crate) logprob: f32,
    /// 0 where a token was found.
    pub(crate) outcome: u32,
    pub(crate) top: u32,
}

/// A token that may have been chosen.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rival {
    pub(crate) token: u32,
    pub(crate) logprob: f32,
}

// SAFETY: plain numbers without gaps.
unsafe impl DeviceRepr for AskParameters {}
// SAFETY: plain numbers without gaps.
unsafe impl DeviceRepr for Counted {}
// SAFETY: plain numbers without gaps.
unsafe impl DeviceRepr for Bias {}
// SAFETY: plain numbers without gaps.
unsafe impl DeviceRepr for Answer {}
// SAFETY: plain numbers without gaps.
unsafe impl DeviceRepr for Rival {}

#[repr(C)]
pub(crate) struct SampleParameters {
    pub(crate) logits: Address,
    pub(crate) work: Address,
    pub(crate) asks: Address,
    pub(crate) counted: Address,
    pub(crate) biases: Address,
    pub(crate) masks: Address,
    pub(crate) answers: Address,
    pub(crate) rivals: Address,
    /// Answers of the step before, where anything is fed.
    pub(crate) before: Address,
    pub(crate) vocabulary: u32,
    pub(crate) most_rivals: u32,
}

// SAFETY: as in sampling.cu.
unsafe impl Parameters for SampleParameters {}

/// Finds a token in each of `rows` rows, each looked at by so many threads.
pub(crate) fn sample_by(
    on: &dyn Executor,
    parameters: &SampleParameters,
    (rows, threads): (usize, u32),
) -> Result<()> {
    launch(on, Kernel::Sample, parameters, Grid::along_x(rows, threads))
}

#[repr(C)]
pub(crate) struct FeedParameters {
    pub(crate) tokens: Address,
    pub(crate) before: Address,
    pub(crate) count: u32,
}

// SAFETY: as in sampling.cu.
unsafe impl Parameters for FeedParameters {}

/// Marks what is no token, but the row of the step before that it is chosen in.
pub(crate) const FED: u32 = 1 << 31;

/// Puts tokens of the step before where they are fed.
pub(crate) fn feed_by(on: &dyn Executor, parameters: &FeedParameters) -> Result<()> {
    launch(on, Kernel::FeedTokens, parameters, Grid::of_elements(parameters.count as usize))
}

/// What is asked of some rows, and the lists it refers to.
#[derive(Debug, Default)]
pub(crate) struct Asks {
    pub(crate) rows: Vec<AskParameters>,
    pub(crate) counted: Vec<Counted>,
    pub(crate) biases: Vec<Bias>,
    pub(crate) masks: Vec<u8>,
}

/// Where [`Asks::words`] are on a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AsksAt {
    pub(crate) rows: Address,
    pub(crate) counted: Address,
    pub(crate) biases: Address,
    pub(crate) masks: Address,
}

impl Asks {
    /// All of it, part by part.
    pub(crate) fn words(&self) -> Vec<u32> {
        let Self { rows, counted, biases, masks } = self;
        let mut words = Vec::new();
        words.extend_from_slice(words_of(rows));
        words.extend_from_slice(words_of(counted));
        words.extend_from_slice(words_of(biases));
        words.extend(masks.chunks(size_of::<u32>()).map(|bytes| {
            let mut word = [0; size_of::<u32>()];
            word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            u32::from_ne_bytes(word)
        }));
        words
    }

    /// Where its parts are, whose [words](Self::words) are at `first`.
    pub(crate) fn at(&self, first: Address) -> AsksAt {
        let counted = first.plus(size_of_val(self.rows.as_slice()));
        let biases = counted.plus(size_of_val(self.counted.as_slice()));
        let masks = biases.plus(size_of_val(self.biases.as_slice()));
        AsksAt { rows: first, counted, biases, masks }
    }
}

/// Numbers of four bytes without gaps, as words.
fn words_of<T: DeviceRepr>(values: &[T]) -> &[u32] {
    const { assert!(align_of::<T>() == align_of::<u32>() && size_of::<T>().is_multiple_of(size_of::<u32>())) };
    // SAFETY: they are as long and as aligned, and any bits are a word.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values) / size_of::<u32>()) }
}

/// What was found in some rows: of each an answer, and so many rivals of which it says how many there are.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pub(crate) answers: Vec<Answer>,
    pub(crate) rivals: Vec<Rival>,
    pub(crate) most_rivals: usize,
}

/// Words of an answer, and of a rival.
const ANSWER: usize = size_of::<Answer>() / size_of::<u32>();
const RIVAL: usize = size_of::<Rival>() / size_of::<u32>();

/// How many answers and rivals there are: answers first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AnswerShape {
    pub(crate) rows: usize,
    pub(crate) most_rivals: usize,
}

impl AnswerShape {
    /// Of what is asked.
    pub(crate) fn of(asks: &Asks) -> Self {
        let most_rivals = asks.rows.iter().map(|ask| ask.top as usize).max().unwrap_or(0);
        Self { rows: asks.rows.len(), most_rivals }
    }

    /// Words they take.
    pub(crate) fn words(self) -> usize {
        self.rows * (ANSWER + self.most_rivals * RIVAL)
    }

    /// Where the answers and rivals from `row` on are, those of all at `first`.
    fn at_row(self, first: Address, row: usize) -> (Address, Address) {
        let rivals = first.plus(self.rows * size_of::<Answer>());
        let rival = row * self.most_rivals * size_of::<Rival>();
        (first.plus(row * size_of::<Answer>()), rivals.plus(rival))
    }

    /// What the words say.
    pub(crate) fn read(self, words: &[u32]) -> Answers {
        let (answers, rivals) = words.split_at(words.len().min(self.rows * ANSWER));
        let (answers, _) = answers.as_chunks::<ANSWER>();
        let (rivals, _) = rivals.as_chunks::<RIVAL>();
        let number = f32::from_bits;
        let answer = |[token, logprob, outcome, top]: &[u32; ANSWER]| Answer {
            token: *token,
            logprob: number(*logprob),
            outcome: *outcome,
            top: *top,
        };
        let rival = |[token, logprob]: &[u32; RIVAL]| Rival { token: *token, logprob: number(*logprob) };
        Answers {
            answers: answers.iter().map(answer).collect(),
            rivals: rivals.iter().map(rival).collect(),
            most_rivals: self.most_rivals,
        }
    }
}

/// Where a step's rows are sampled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SamplingAt {
    pub(crate) asks: AsksAt,
    pub(crate) answers: Address,
    pub(crate) shape: AnswerShape,
    /// Answers of the step before.
    pub(crate) before: Address,
}

impl SamplingAt {
    /// Starts sampling the rows of `logits` (rows, vocabulary), which are those from `first_row` on.
    pub(crate) fn start(&self, first_row: usize, (logits, layout): (&CudaStorage, &Layout)) -> Result<()> {
        let (rows, vocabulary) = layout.shape().dims2()?;
        let device = &logits.device;
        let work = room::<f32>(device, rows * vocabulary)?;
        let (answers, rivals) = self.shape.at_row(self.answers, first_row);
        let call = SampleParameters {
            logits: address::<f32>(logits, layout)?,
            work: of_slice(&work),
            asks: self.asks.rows.plus(first_row * size_of::<AskParameters>()),
            counted: self.asks.counted,
            biases: self.asks.biases,
            masks: self.asks.masks,
            answers,
            rivals,
            before: self.before,
            vocabulary: vocabulary as u32,
            most_rivals: self.shape.most_rivals as u32,
        };
        sample_by(&Gpu(device), &call, (rows, THREADS))
    }
}
