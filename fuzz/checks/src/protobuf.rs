//! Messages between router and shards. The first byte chooses which, the rest is the message.

use lockstep_proto::{ShardDescription, Step, StepOutput, WireError, wire};
use prost::Message;

/// A message is refused, or what it says survives the way there and back.
pub fn check(data: &[u8]) {
    let Some((kind, message)) = data.split_first() else { return };
    match kind % 3 {
        0 => survives::<wire::Step, Step>(message),
        1 => survives::<wire::StepOutput, StepOutput>(message),
        _ => {
            let Ok(message) = wire::DescribeResponse::decode(message) else { return };
            let told = ShardDescription::from(message);
            let again = ShardDescription::from(wire::DescribeResponse::from(told.clone()));
            assert_eq!(told, again);
            let _ = told.blocks_that_fit();
        }
    }
}

/// Compared as bytes: what is no number equals nothing.
fn survives<W, D>(message: &[u8])
where
    W: Message + Default + From<D>,
    D: TryFrom<W, Error = WireError>,
{
    let Ok(message) = W::decode(message) else { return };
    let Ok(value) = D::try_from(message) else { return };
    let bytes = W::from(value).encode_to_vec();
    let again = W::decode(&bytes[..]).expect("it was just encoded");
    let again = D::try_from(again).expect("it was just encoded");
    assert_eq!(W::from(again).encode_to_vec(), bytes);
}
