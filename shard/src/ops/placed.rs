//! Rows of a batch, with what a device must know of where they stand.

use candle_core::{Device, Result};

use super::attention::AttentionShape;
use crate::batch::BatchSequence;
use crate::kv::KvDtype;

#[cfg(feature = "cuda")]
pub(crate) use super::cuda::attention::DeviceRows;

/// Rows of some sequences. What a device needs of them is brought there once, for all layers.
pub(crate) struct Placed<'a> {
    pub(crate) sequences: &'a [BatchSequence],
    #[cfg(feature = "cuda")]
    on_device: Option<DeviceRows>,
}

impl<'a> Placed<'a> {
    /// In main memory.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn on_cpu(sequences: &'a [BatchSequence]) -> Self {
        Self {
            sequences,
            #[cfg(feature = "cuda")]
            on_device: None,
        }
    }

    /// Where operators on `device` find them, for attention of this shape, whose window does not matter, over
    /// keys and values held so.
    ///
    /// # Errors
    /// When the device has no memory for them.
    #[cfg(not(feature = "cuda"))]
    pub(crate) fn new(
        sequences: &'a [BatchSequence],
        _: (AttentionShape, KvDtype),
        _: &Device,
    ) -> Result<Self> {
        Ok(Self { sequences })
    }

    /// Where operators on `device` find them, for attention of this shape, whose window does not matter, over
    /// keys and values held so.
    ///
    /// # Errors
    /// When the device has no memory for them.
    #[cfg(feature = "cuda")]
    pub(crate) fn new(
        sequences: &'a [BatchSequence],
        attention: (AttentionShape, KvDtype),
        device: &Device,
    ) -> Result<Self> {
        let on_device = match device {
            Device::Cuda(device) => Some(DeviceRows::new(device, sequences, attention)?),
            Device::Cpu | Device::Metal(_) => None,
        };
        Ok(Self { sequences, on_device })
    }

    /// What is on the device already, of these sequences or of as many like them.
    #[cfg(feature = "cuda")]
    pub(crate) fn there(sequences: &'a [BatchSequence], on_device: DeviceRows) -> Self {
        Self { sequences, on_device: Some(on_device) }
    }

    /// The same, whose tokens are on the device as well.
    #[cfg(feature = "cuda")]
    pub(crate) fn with_tokens(self, tokens: super::cuda::kernel::Address) -> Self {
        let on_device = self.on_device.map(|rows| rows.with_tokens(tokens));
        Self { on_device, ..self }
    }

    /// What was brought to the device.
    ///
    /// # Errors
    /// When they were placed in main memory.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_device(&self) -> Result<&DeviceRows> {
        let missing =
            || candle_core::Error::msg("compute on a device: the rows were placed in main memory");
        self.on_device.as_ref().ok_or_else(missing)
    }
}
