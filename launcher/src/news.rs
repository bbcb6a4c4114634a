//! What people read of a rolling restart in the log.

use tracing::{error, info, warn};

use crate::supervisor::{Refusal, RollingNews};

pub(crate) fn tell(news: RollingNews) {
    match news {
        RollingNews::Begun(replica) => {
            info!(replica = replica.0, "rolling restart: this group leaves and comes back")
        }
        RollingNews::Done => info!("rolling restart: every group was restarted and serves"),
        RollingNews::Abandoned(replica) => {
            error!(
                replica = replica.0,
                "rolling restart: ended, since this group does not serve; the others stay as they are"
            );
        }
        RollingNews::Refused(Refusal::OneReplica) => {
            warn!("rolling restart: refused, since nobody would serve meanwhile; it takes --replicas 2");
        }
        RollingNews::Refused(Refusal::Down(replica)) => {
            warn!(replica = replica.0, "rolling restart: refused, since this group does not serve");
        }
        RollingNews::Refused(Refusal::UnderWay) => {
            warn!("rolling restart: refused, since one is under way");
        }
        RollingNews::Refused(Refusal::Stopping) => {
            warn!("rolling restart: refused, since the server stops")
        }
    }
}
