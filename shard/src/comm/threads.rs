//! Ranks as threads of one process: plain and slow, what the fast transports are checked against.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use lockstep_proto::Rank;

use super::{CommError, Communicator, Membership, tree};

/// One rank of a group of threads.
#[derive(Clone)]
pub struct Threads {
    membership: Membership,
    watchdog: Duration,
    group: Arc<Group>,
}

struct Group {
    exchange: Mutex<Exchange>,
    changed: Condvar,
}

/// One exchange at a time: ranks bring their parts, the last one completes it, all take it away.
struct Exchange {
    generation: u64,
    brought: Vec<Option<Vec<u8>>>,
    complete: Arc<Vec<Vec<u8>>>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Alive,
    Aborted,
}

impl Threads {
    /// The ranks of a new group, in order.
    ///
    /// # Errors
    /// When the group's size is no power of two.
    pub fn group(world_size: u32, watchdog: Duration) -> Result<Vec<Self>, CommError> {
        let exchange = Exchange {
            generation: 0,
            brought: vec![None; world_size as usize],
            complete: Arc::new(Vec::new()),
            state: State::Alive,
        };
        let group = Arc::new(Group { exchange: Mutex::new(exchange), changed: Condvar::new() });
        let join = |rank| {
            let membership = Membership::new(Rank(rank), world_size)?;
            Ok(Self { membership, watchdog, group: Arc::clone(&group) })
        };
        (0..world_size.max(1)).map(join).collect()
    }

    fn exchange(&self, mine: Vec<u8>) -> Result<Arc<Vec<Vec<u8>>>, CommError> {
        let mut exchange = self.lock();
        if exchange.state == State::Aborted {
            return Err(CommError::Aborted);
        }
        exchange.brought[self.membership.index()] = Some(mine);
        if exchange.brought.iter().all(Option::is_some) {
            exchange.complete = Arc::new(exchange.brought.iter_mut().filter_map(Option::take).collect());
            exchange.generation += 1;
            self.group.changed.notify_all();
            return Ok(Arc::clone(&exchange.complete));
        }
        self.wait(exchange)
    }

    fn wait(&self, mut exchange: MutexGuard<'_, Exchange>) -> Result<Arc<Vec<Vec<u8>>>, CommError> {
        let generation = exchange.generation;
        let deadline = Instant::now() + self.watchdog;
        while exchange.generation == generation {
            if exchange.state == State::Aborted {
                return Err(CommError::Aborted);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                exchange.state = State::Aborted;
                self.group.changed.notify_all();
                return Err(CommError::TimedOut { waited: self.watchdog });
            }
            let woken = self.group.changed.wait_timeout(exchange, left);
            exchange = woken.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        Ok(Arc::clone(&exchange.complete))
    }

    /// No code panics while it holds the lock, so a poisoned one holds whole values too.
    fn lock(&self) -> MutexGuard<'_, Exchange> {
        self.group.exchange.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Communicator for Threads {
    fn rank(&self) -> Rank {
        self.membership.rank()
    }

    fn world_size(&self) -> u32 {
        self.membership.world_size()
    }

    fn all_reduce(&self, values: &mut [f32]) -> Result<(), CommError> {
        let parts = self.exchange(to_bytes(values))?;
        let parts: Vec<Vec<f32>> = parts.iter().map(|part| from_bytes(part)).collect();
        let parts: Vec<&[f32]> = parts.iter().map(Vec::as_slice).collect();
        tree::add(&parts, values);
        Ok(())
    }

    fn all_gather(&self, mine: &[f32], all: &mut [f32]) -> Result<(), CommError> {
        self.membership.check_gather(mine.len(), all.len())?;
        let parts = self.exchange(to_bytes(mine))?;
        all.copy_from_slice(&from_bytes(&parts.concat()));
        Ok(())
    }

    fn broadcast(&self, root: Rank, bytes: &mut [u8]) -> Result<(), CommError> {
        self.membership.check_root(root)?;
        let parts = self.exchange(bytes.to_vec())?;
        bytes.copy_from_slice(&parts[root.0 as usize]);
        Ok(())
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.exchange(Vec::new()).map(|_| ())
    }

    fn abort(&self) {
        self.lock().state = State::Aborted;
        self.group.changed.notify_all();
    }
}

fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|word| f32::from_ne_bytes(*word)).collect()
}
