//! Where the launcher hears of its processes. Ranks know of no other replica than theirs, so each replica has a socket of
//! its own.

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use lockstep_process::reports::{Report, ReportInbox};
use lockstep_proto::ReplicaId;

use crate::plan;
use crate::sockets::SocketFolder;

/// Where processes are heard.
pub(crate) struct Reports {
    router: ReportInbox,
    /// By replica: its ranks.
    shards: Vec<ReportInbox>,
}

impl Reports {
    /// Listens in the folder of the run's sockets.
    pub(crate) fn bind(sockets: &SocketFolder, replicas: u32) -> std::io::Result<Self> {
        let folder = sockets.path();
        let shards = (0..replicas).map(|replica| plan::reports_of_replica(&folder, ReplicaId(replica)));
        Ok(Self {
            router: ReportInbox::bind(&plan::reports_of(&folder))?,
            shards: shards.map(|path| ReportInbox::bind(&path)).collect::<Result<_, _>>()?,
        })
    }

    /// The next report of the router.
    ///
    /// # Cancel safety
    /// No report is lost.
    pub(crate) async fn next_of_router(&self) -> Report {
        self.router.next().await
    }

    /// The next report of a rank, with its replica.
    ///
    /// # Cancel safety
    /// No report is lost.
    pub(crate) async fn next_of_shards(&self) -> (ReplicaId, Report) {
        let heard = (0..).map(ReplicaId).zip(&self.shards);
        let mut heard: FuturesUnordered<_> =
            heard.map(|(replica, inbox)| async move { (replica, inbox.next().await) }).collect();
        match heard.next().await {
            Some(report) => report,
            None => std::future::pending().await,
        }
    }
}
