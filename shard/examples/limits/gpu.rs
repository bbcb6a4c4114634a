//! The limits of a GPU.

use std::error::Error;

use lockstep_proto::Rank;
use lockstep_shard::comm::Membership;
use lockstep_shard::device::{DeviceArgs, Target};
use lockstep_shard::gpu_limits::GpuProbe;

use super::Machine;

/// The GPU that `device` means.
pub(crate) fn machine(device: DeviceArgs) -> Result<Box<dyn Machine>, Box<dyn Error>> {
    let target = Target::open(device, Membership::new(Rank(0), 1)?)?;
    Ok(Box::new(GpuProbe::new(&target)?))
}

impl Machine for GpuProbe {
    fn per_second(&mut self, limit: &str) -> Result<Option<f64>, Box<dyn Error>> {
        match limit {
            "bandwidth" => Ok(Some(self.copied_bytes_per_second()?)),
            "bf16" => Ok(Some(self.bf16_operations_per_second()?)),
            other => Err(format!("measure {other:?} of a GPU: say `bandwidth` or `bf16`").into()),
        }
    }
}
