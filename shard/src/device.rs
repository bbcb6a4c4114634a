//! Which device a rank computes on, chosen when it starts: one binary serves with and without GPUs.

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};
use lockstep_proto::Rank;
use thiserror::Error;

use crate::comm::Membership;
#[cfg(feature = "cuda")]
use crate::ops::cuda::product::{Order, Sums, cublaslt::CublasLt};

/// Where ranks compute.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceArgs {
    /// Where the model is computed; auto: on GPUs where this binary can and there are any, else on the CPU
    #[arg(long, env, value_enum, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,

    /// How many ranks may share a GPU
    #[arg(long, env, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub ranks_per_gpu: u32,

    /// On GPUs, keep the answer's bytes independent of batch and number of ranks, as they always are on the CPU;
    /// slower
    #[arg(long, env, value_parser = BoolishValueParser::new())]
    pub exact: bool,

    /// Whether steps that only decode are recorded as CUDA graphs, so that the host starts one thing in place of many;
    /// auto: where the model allows it
    #[arg(long, env, value_enum, default_value_t = CudaGraphs::Auto)]
    pub cuda_graphs: CudaGraphs,

    /// Places on GPUs that belong to other groups and come before those of this one
    #[arg(long, hide = true, default_value_t = 0)]
    pub places_taken: u32,
}

/// What may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceChoice {
    /// GPUs where there are any.
    Auto,
    /// The CPU.
    Cpu,
    /// GPUs, each rank one of those CUDA_VISIBLE_DEVICES names.
    Cuda,
}

/// Whether decode steps are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CudaGraphs {
    /// Where that works: dense models, on one rank.
    Auto,
    /// Never.
    Off,
}

/// What was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The CPU.
    Cpu,
    /// GPUs.
    Cuda,
}

/// A device that cannot be had.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The binary knows no GPU.
    #[error("compute on GPUs: this binary was built without the feature cuda; see deploy/cuda-toolchain")]
    NotBuilt,
    /// What GPUs need is not on this machine.
    #[error("compute on GPUs: {library} cannot be opened; it comes with {part}")]
    NoLibrary {
        /// The file.
        library: &'static str,
        /// Where it comes from.
        part: &'static str,
    },
    /// The driver is there and has no GPU.
    #[error("compute on GPUs: the driver has none to offer ({reason}); is CUDA_VISIBLE_DEVICES right?")]
    NoGpu {
        /// What the driver says.
        reason: String,
    },
    /// Not every rank has a GPU.
    #[error(
        "compute {ranks} ranks on {gpus} visible GPUs: {places} have a place; give fewer shards, or more with \
         --ranks-per-gpu"
    )]
    TooManyRanks {
        /// Ranks of the group.
        ranks: u32,
        /// GPUs that are visible.
        gpus: usize,
        /// Ranks that would fit.
        places: usize,
    },
    /// A GPU cannot be used.
    #[error("open GPU {ordinal}: {reason}")]
    Open {
        /// Which of the visible ones.
        ordinal: usize,
        /// What the driver says.
        reason: String,
    },
    /// An option that only GPUs have.
    #[error("compute on the CPU with {option}: it is there on GPUs only; {instead}")]
    GpusOnly {
        /// The option.
        option: &'static str,
        /// What to give.
        instead: &'static str,
    },
}

impl DeviceChoice {
    /// As it is typed.
    pub fn as_argument(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

impl From<DeviceKind> for DeviceChoice {
    fn from(kind: DeviceKind) -> Self {
        match kind {
            DeviceKind::Cpu => Self::Cpu,
            DeviceKind::Cuda => Self::Cuda,
        }
    }
}

impl DeviceArgs {
    /// Where a group of `ranks` computes on this machine.
    ///
    /// # Errors
    /// When GPUs were asked for and cannot be had, or there are fewer than the ranks need.
    pub fn kind(self, ranks: u32) -> Result<DeviceKind, DeviceError> {
        let gpus = match self.device {
            DeviceChoice::Cpu => return Ok(DeviceKind::Cpu),
            DeviceChoice::Auto => match visible_gpus() {
                Ok(gpus) => gpus,
                Err(DeviceError::NotBuilt) => return Ok(DeviceKind::Cpu),
                Err(error) => {
                    tracing::info!(%error, "computing on the CPU");
                    return Ok(DeviceKind::Cpu);
                }
            },
            DeviceChoice::Cuda => visible_gpus()?,
        };
        let places = self.places_taken.saturating_add(ranks);
        check_places(places, gpus, self.ranks_per_gpu).map(|()| DeviceKind::Cuda)
    }

    /// As [`Self::kind`] has settled it.
    #[must_use]
    pub fn settled(self, kind: DeviceKind) -> Self {
        Self { device: kind.into(), ..self }
    }

    /// Of a group whose places come after those of `before` such groups of `ranks` each.
    #[must_use]
    pub fn after(self, before: u32, ranks: u32) -> Self {
        Self { places_taken: before.saturating_mul(ranks), ..self }
    }

    /// Which of the visible GPUs a rank has.
    pub fn ordinal(self, rank: Rank) -> usize {
        (self.places_taken.saturating_add(rank.0) / self.ranks_per_gpu.max(1)) as usize
    }

    /// The command line of a shard that computes there, where it is not what a shard does by itself.
    pub fn to_arguments(self) -> Vec<String> {
        let mut arguments = Vec::new();
        if self.device != DeviceChoice::Auto {
            arguments.extend(["--device".to_owned(), self.device.as_argument().to_owned()]);
        }
        if self.ranks_per_gpu != 1 {
            arguments.extend(["--ranks-per-gpu".to_owned(), self.ranks_per_gpu.to_string()]);
        }
        if self.exact {
            arguments.push("--exact".to_owned());
        }
        if self.cuda_graphs == CudaGraphs::Off {
            arguments.extend(["--cuda-graphs".to_owned(), "off".to_owned()]);
        }
        if self.device == DeviceChoice::Cuda && self.places_taken != 0 {
            arguments.extend(["--places-taken".to_owned(), self.places_taken.to_string()]);
        }
        arguments
    }
}

fn check_places(ranks: u32, gpus: usize, ranks_per_gpu: u32) -> Result<(), DeviceError> {
    let places = gpus.saturating_mul(ranks_per_gpu as usize);
    if ranks as usize > places { Err(DeviceError::TooManyRanks { ranks, gpus, places }) } else { Ok(()) }
}

/// How many GPUs this process sees.
///
/// # Errors
/// When the binary, the machine or CUDA_VISIBLE_DEVICES has none, which it says.
#[cfg(not(feature = "cuda"))]
pub fn visible_gpus() -> Result<usize, DeviceError> {
    Err(DeviceError::NotBuilt)
}

/// How many GPUs this process sees.
///
/// # Errors
/// When the binary, the machine or CUDA_VISIBLE_DEVICES has none, which it says.
#[cfg(feature = "cuda")]
pub fn visible_gpus() -> Result<usize, DeviceError> {
    gpus::visible()
}

/// A rank's device, and how sums on it are ordered.
#[derive(Clone, Debug)]
pub struct Target {
    pub(crate) device: candle_core::Device,
    pub(crate) exact: bool,
    /// Whether steps that only decode are recorded and replayed.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "nothing is recorded on a CPU"))]
    pub(crate) records: bool,
    /// Of a GPU its compute capability, such as 9.0. Others may add the products of one instruction in another order.
    pub(crate) architecture: String,
    /// What multiplies on a GPU where any order of sums will do; none where one was asked for.
    #[cfg(feature = "cuda")]
    pub(crate) cublaslt: Option<std::sync::Arc<CublasLt>>,
}

impl Target {
    /// The CPU.
    pub fn cpu() -> Self {
        Self {
            device: candle_core::Device::Cpu,
            exact: true,
            records: false,
            architecture: String::new(),
            #[cfg(feature = "cuda")]
            cublaslt: None,
        }
    }

    /// Opens the device of a rank.
    ///
    /// # Errors
    /// When there is none for it, or it cannot be opened.
    pub fn open(args: DeviceArgs, membership: Membership) -> Result<Self, DeviceError> {
        match args.kind(membership.world_size())? {
            DeviceKind::Cpu => Ok(Self::cpu()),
            DeviceKind::Cuda => {
                let gpu = Self::open_gpu(args.ordinal(membership.rank()), args.exact)?;
                Ok(Self { records: args.cuda_graphs == CudaGraphs::Auto, ..gpu })
            }
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn open_gpu(_: usize, _: bool) -> Result<Self, DeviceError> {
        Err(DeviceError::NotBuilt)
    }

    /// Opens the `ordinal`-th of the visible GPUs, on which nothing is recorded.
    ///
    /// # Errors
    /// When it cannot be opened.
    #[cfg(feature = "cuda")]
    pub fn open_gpu(ordinal: usize, exact: bool) -> Result<Self, DeviceError> {
        let device = gpus::open(ordinal)?;
        let (_, architecture) = gpus::name(&device)?;
        let failed = |error: candle_core::Error| DeviceError::Open { ordinal, reason: error.to_string() };
        let cublaslt = if exact { None } else { Some(CublasLt::open(&device).map_err(failed)?.into()) };
        Ok(Self {
            device: candle_core::Device::Cuda(device),
            exact,
            records: false,
            architecture,
            cublaslt,
        })
    }

    /// The GPU, where it is one.
    #[cfg(feature = "cuda")]
    pub(crate) fn gpu(&self) -> Option<&candle_core::CudaDevice> {
        match &self.device {
            candle_core::Device::Cuda(device) => Some(device),
            candle_core::Device::Cpu | candle_core::Device::Metal(_) => None,
        }
    }

    /// The order of sums over ranks.
    #[cfg(feature = "cuda")]
    pub(crate) fn order(&self) -> Order {
        if self.exact { Order::Exact } else { Order::Fastest }
    }

    /// The order of sums within products.
    #[cfg(feature = "cuda")]
    pub(crate) fn sums(&self) -> Sums {
        match (&self.cublaslt, self.exact) {
            (Some(library), false) => Sums::Fastest(library.clone()),
            (Some(_) | None, _) => Sums::Exact,
        }
    }

    /// What kind it is.
    pub fn kind(&self) -> DeviceKind {
        match self.device {
            candle_core::Device::Cpu | candle_core::Device::Metal(_) => DeviceKind::Cpu,
            candle_core::Device::Cuda(_) => DeviceKind::Cuda,
        }
    }
}

#[cfg(feature = "cuda")]
pub(crate) mod gpus;
#[cfg(feature = "cuda")]
pub(crate) mod memory_pool;

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: DeviceArgs = DeviceArgs {
        device: DeviceChoice::Auto,
        ranks_per_gpu: 1,
        exact: false,
        cuda_graphs: CudaGraphs::Auto,
        places_taken: 0,
    };

    #[test]
    fn ranks_that_outnumber_gpus_are_refused_unless_they_share() {
        assert!(check_places(4, 4, 1).is_ok());
        assert!(check_places(4, 2, 2).is_ok());
        let error = check_places(4, 3, 1).unwrap_err().to_string();
        assert_eq!(
            error,
            "compute 4 ranks on 3 visible GPUs: 3 have a place; give fewer shards, or more with \
             --ranks-per-gpu"
        );
        assert!(check_places(1, 0, 64).is_err());
    }

    #[test]
    fn neighbouring_ranks_share_a_gpu() {
        let of = |ranks_per_gpu| {
            let args = DeviceArgs { ranks_per_gpu, ..USUAL };
            [0, 1, 2, 3].map(|rank| args.ordinal(Rank(rank)))
        };
        assert_eq!(of(1), [0, 1, 2, 3]);
        assert_eq!(of(2), [0, 0, 1, 1]);
        let second = USUAL.after(1, 2);
        assert_eq!(
            [0, 1].map(|rank| second.ordinal(Rank(rank))),
            [2, 3],
            "another replica has the first two"
        );
    }

    #[test]
    fn a_shard_is_told_what_it_would_not_do_by_itself() {
        assert!(USUAL.to_arguments().is_empty());
        let all = DeviceArgs { ranks_per_gpu: 2, exact: true, ..USUAL.settled(DeviceKind::Cuda) };
        assert_eq!(all.to_arguments(), ["--device", "cuda", "--ranks-per-gpu", "2", "--exact"]);
        let plain = DeviceArgs { cuda_graphs: CudaGraphs::Off, ..USUAL };
        assert_eq!(plain.to_arguments(), ["--cuda-graphs", "off"]);
        assert!(USUAL.after(2, 4).to_arguments().is_empty());
        let second = USUAL.settled(DeviceKind::Cuda).after(2, 4).to_arguments();
        assert_eq!(second, ["--device", "cuda", "--places-taken", "8"]);
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_binary_without_gpus_computes_on_the_cpu_or_says_why_not() {
        assert_eq!(USUAL.kind(4).unwrap(), DeviceKind::Cpu);
        let error = USUAL.settled(DeviceKind::Cuda).kind(1).unwrap_err().to_string();
        assert!(error.contains("built without the feature cuda"), "{error}");
    }

    #[test]
    fn the_cpu_is_always_there() {
        let cpu = USUAL.settled(DeviceKind::Cpu);
        assert_eq!(cpu.kind(8).unwrap(), DeviceKind::Cpu);
        let membership = Membership::new(Rank(1), 2).unwrap();
        assert_eq!(Target::open(cpu, membership).unwrap().kind(), DeviceKind::Cpu);
    }
}
