//! The bytes that ranks send each other.

use lockstep_proto::{Epoch, Rank};

use crate::comm::Joining;

/// What a rank is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Collective {
    AllReduce = 1,
    AllGather = 2,
    Broadcast = 3,
    Barrier = 4,
}

/// Goes before every part and every answer, so that ranks out of step are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) collective: Collective,
    /// Counts exchanges.
    pub(super) exchange: u32,
    /// Of the payload that follows.
    pub(super) bytes: u64,
}

impl Header {
    pub(super) const BYTES: usize = 16;

    pub(super) fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&(self.collective as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&self.exchange.to_le_bytes());
        bytes[8..].copy_from_slice(&self.bytes.to_le_bytes());
        bytes
    }

    /// For an error message: what may have come from a peer that is no rank.
    pub(super) fn describe(encoded: &[u8; Self::BYTES]) -> String {
        let word = |at: usize| {
            u32::from_le_bytes([encoded[at], encoded[at + 1], encoded[at + 2], encoded[at + 3]])
        };
        let collective = match word(0) {
            1 => "all-reduce",
            2 => "all-gather",
            3 => "broadcast",
            4 => "barrier",
            _ => "no collective",
        };
        let bytes = u64::from(word(8)) | u64::from(word(12)) << 32;
        format!("{collective} number {} of {bytes} bytes", word(4))
    }
}

/// What a rank says when it connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) rank: Rank,
    pub(super) world_size: u32,
    pub(super) epoch: Epoch,
}

impl Hello {
    pub(super) const BYTES: usize = 24;
    /// Tells a rank of this release from anything else that may connect.
    const MAGIC: [u8; 8] = *b"lckstp01";

    pub(super) fn of(joining: Joining) -> Self {
        Self {
            rank: joining.membership.rank(),
            world_size: joining.membership.world_size(),
            epoch: joining.epoch,
        }
    }

    pub(super) fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&Self::MAGIC);
        bytes[8..12].copy_from_slice(&self.rank.0.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.world_size.to_le_bytes());
        bytes[16..].copy_from_slice(&self.epoch.0.to_le_bytes());
        bytes
    }

    /// `None` when this is no rank of this release.
    pub(super) fn decode(bytes: [u8; Self::BYTES]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (rank, rest) = rest.split_first_chunk()?;
        let (world_size, rest) = rest.split_first_chunk()?;
        let (epoch, _) = rest.split_first_chunk()?;
        (*magic == Self::MAGIC).then(|| Self {
            rank: Rank(u32::from_le_bytes(*rank)),
            world_size: u32::from_le_bytes(*world_size),
            epoch: Epoch(u64::from_le_bytes(*epoch)),
        })
    }
}

/// Rank 0's answer to a [`Hello`].
pub(super) const WELCOME: u8 = 1;
/// Rank 0's answer to a rank it has already, or of another group.
pub(super) const REFUSED: u8 = 2;
