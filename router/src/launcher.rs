//! What the router tells the launcher of its groups, and what it is told about them.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use lockstep_process::datagrams::send;
use lockstep_process::orders::{Order, OrderInbox};
use lockstep_process::reports::Report;
use lockstep_process::tasks::{Fate, Tasks};
use lockstep_proto::{Epoch, ReplicaId};
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::config::LauncherSockets;
use crate::engine::{Engine, GroupState};

/// How often it is said again who serves: what was not heard is heard then.
const BETWEEN_REPORTS: Duration = Duration::from_secs(1);

/// Starts the tasks that tell and hear, until the engine ends.
///
/// # Errors
/// When nothing can be heard at the socket for orders.
pub(crate) fn begin_talking(sockets: &LauncherSockets, engine: &Engine, tasks: &Tasks) -> io::Result<()> {
    let Some(reports) = sockets.reports.clone() else { return Ok(()) };
    if let Some(path) = &sockets.orders {
        let orders = OrderInbox::bind(path)?;
        let (engine, reports, stop) = (engine.clone(), reports.clone(), tasks.stop_token().clone());
        tasks.spawn("orders", Fate::Log, async move {
            let _ = stop.run_until_cancelled(obey(orders, engine, reports)).await;
        });
    }
    tasks.spawn("group reports", Fate::Log, report_groups(engine.replica_states(), reports));
    Ok(())
}

/// Carries out one order after the other. Each is answered, also one that was carried out before.
async fn obey(orders: OrderInbox, engine: Engine, reports: PathBuf) {
    loop {
        let Order::Drain { replica, epoch } = orders.next().await;
        if engine.drain(ReplicaId(replica), Epoch(epoch)).await.is_err() {
            return;
        }
        tell(&reports, Report::Lost { replica, epoch });
    }
}

/// Tells of every group that begins or ends to serve, and again and again of those that serve.
async fn report_groups(mut groups: watch::Receiver<Vec<GroupState>>, reports: PathBuf) {
    let mut told: Vec<Option<u64>> = Vec::new();
    loop {
        let serving: Vec<Option<u64>> = groups.borrow_and_update().iter().map(epoch).collect();
        told.resize(serving.len(), None);
        for (replica, (before, now)) in (0..).zip(told.iter().zip(&serving)) {
            if let Some(epoch) = before.filter(|_| before != now) {
                tell(&reports, Report::Lost { replica, epoch });
            }
            if let Some(epoch) = *now {
                tell(&reports, Report::Serves { replica, epoch });
            }
        }
        told = serving;
        match tokio::time::timeout(BETWEEN_REPORTS, groups.changed()).await {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(_)) => return,
        }
    }
}

fn epoch(state: &GroupState) -> Option<u64> {
    match state {
        GroupState::Ready(facts) => Some(facts.epoch.0),
        GroupState::Away { .. } => None,
    }
}

fn tell(reports: &std::path::Path, report: Report) {
    if let Err(error) = send(reports, report) {
        match report {
            Report::Lost { .. } => warn!(%error, %report, "the launcher does not hear of a lost group"),
            // It is told again.
            Report::Serves { .. } | Report::RankLives { .. } | Report::RouterLives => {
                debug!(%error, %report, "the launcher does not hear");
            }
        }
    }
}
