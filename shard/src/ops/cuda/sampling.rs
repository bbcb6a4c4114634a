//! Tokens and log-probabilities from logits that stay on a device.

use candle_core::cuda_backend::CudaStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr};
use candle_core::{CudaDevice, Layout, Result};

use super::gpu::Gpu;
use super::kernel::{Address, Executor, Grid, Kernel, Parameters, launch};
use super::storage::{address, copy_of, of_slice, room};

/// Threads that look at a row.
const THREADS: u32 = 1024;

/// Rivals that are told at most; who asks for more has the row sampled on the host.
pub(crate) const MOST_RIVALS: usize = 32;

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

/// What is asked of some rows, and the lists it refers to.
#[derive(Debug, Default)]
pub(crate) struct Asks {
    pub(crate) rows: Vec<AskParameters>,
    pub(crate) counted: Vec<Counted>,
    pub(crate) biases: Vec<Bias>,
    pub(crate) masks: Vec<u8>,
}

/// What was found in some rows: of each an answer, and [`MOST_RIVALS`] rivals of which it says how many there are.
pub(crate) struct Answers {
    pub(crate) answers: Vec<Answer>,
    pub(crate) rivals: Vec<Rival>,
}

/// A step's answers on their way from the device.
pub(crate) struct Sampling {
    answers: CudaSlice<Answer>,
    rivals: CudaSlice<Rival>,
}

impl Sampling {
    /// Starts sampling the rows of `logits` (rows, vocabulary), one for each that is asked about.
    pub(crate) fn start(asks: &Asks, logits: &CudaStorage, layout: &Layout) -> Result<Self> {
        let (rows, vocabulary) = layout.shape().dims2()?;
        let device = &logits.device;
        let (on_device, counted) = (copy_of(device, &asks.rows)?, copy_of(device, &asks.counted)?);
        let (biases, masks) = (copy_of(device, &asks.biases)?, copy_of(device, &asks.masks)?);
        let work = room::<f32>(device, rows * vocabulary)?;
        let sampling = Self { answers: room(device, rows)?, rivals: room(device, rows * MOST_RIVALS)? };
        let call = SampleParameters {
            logits: address::<f32>(logits, layout)?,
            work: of_slice(&work),
            asks: of_slice(&on_device),
            counted: of_slice(&counted),
            biases: of_slice(&biases),
            masks: of_slice(&masks),
            answers: of_slice(&sampling.answers),
            rivals: of_slice(&sampling.rivals),
            vocabulary: vocabulary as u32,
            most_rivals: MOST_RIVALS as u32,
        };
        sample_by(&Gpu(device), &call, (rows, THREADS))?;
        Ok(sampling)
    }

    /// Waits for the device.
    pub(crate) fn answers(&self, device: &CudaDevice) -> Result<Answers> {
        Ok(Answers { answers: device.clone_dtoh(&self.answers)?, rivals: device.clone_dtoh(&self.rivals)? })
    }
}
