//! Exchanges between ranks whose values are on devices: by NCCL, or through main memory where there is none.

use candle_core::cuda_backend::CudaStorage;
use candle_core::{CudaDevice, Layout, Result, bail};

use super::gpu::Gpu;
use super::rows::{VocabularyParameters, join_vocabulary};
use super::storage::{address, of_slice, room, wrapped};
use crate::comm::{CommError, Communicator};

/// Replaces values by their sum over all ranks. The outer result is the device's, the inner one the group's.
pub(crate) fn all_reduce(
    communicator: &dyn Communicator,
    values: &mut CudaStorage,
    layout: &Layout,
) -> Result<std::result::Result<(), CommError>> {
    if communicator.world_size() == 1 {
        return Ok(Ok(()));
    }
    let Some((first, end)) = layout.contiguous_offsets() else {
        bail!("sum a tensor of shape {:?} over ranks: it is not contiguous", layout.shape())
    };
    if let Some(nccl) = communicator.nccl() {
        return Ok(nccl.all_reduce(address::<f32>(values, layout)?, end - first));
    }
    let device = values.device.clone();
    let mut slice = values.as_cuda_slice_mut::<f32>()?.slice_mut(first..end);
    let mut on_host = device.clone_dtoh(&slice)?;
    let outcome = communicator.all_reduce(&mut on_host);
    device.memcpy_htod(&on_host, &mut slice)?;
    Ok(outcome)
}

/// (rows, entries of a rank) of every rank → (rows, vocabulary), without the last rank's padding.
pub(crate) fn gather_vocabulary(
    communicator: &dyn Communicator,
    vocabulary: usize,
    mine: &CudaStorage,
    layout: &Layout,
) -> Result<std::result::Result<CudaStorage, CommError>> {
    let (rows, width) = layout.shape().dims2()?;
    let device: &CudaDevice = &mine.device;
    let ranks = communicator.world_size() as usize;
    let count = rows * width;
    let place = address::<f32>(mine, layout)?;
    let mut all = room::<f32>(device, if ranks == 1 { 0 } else { ranks * count })?;
    let parts = if ranks == 1 { place } else { of_slice(&all) };
    if let Some(nccl) = communicator.nccl() {
        if let Err(error) = nccl.all_gather(place, parts, count) {
            return Ok(Err(error));
        }
    } else if ranks > 1 {
        let Some((first, end)) = layout.contiguous_offsets() else {
            bail!("gather logits of shape {:?}: they are not contiguous", layout.shape())
        };
        let part = device.clone_dtoh(&mine.as_cuda_slice::<f32>()?.slice(first..end))?;
        let mut on_host = vec![0.0; ranks * count];
        if let Err(error) = communicator.all_gather(&part, &mut on_host) {
            return Ok(Err(error));
        }
        device.memcpy_htod(&on_host, &mut all)?;
    }
    let output = room::<f32>(device, rows * vocabulary)?;
    let call = VocabularyParameters {
        parts,
        output: of_slice(&output),
        elements: (rows * vocabulary) as u64,
        rows: rows as u32,
        width: width as u32,
        vocabulary: vocabulary as u32,
    };
    join_vocabulary(&Gpu(device), &call)?;
    Ok(Ok(wrapped(output, device)))
}
