//! Which processors lie beside which memory, and which of them each rank computes on. [`cpus`] reads the host; the rest is
//! pure.

use std::path::Path;

use clap::ValueEnum;
use lockstep_process::cpus::CpuList;
use lockstep_shard::device::DeviceChoice;
use tracing::{info, warn};

use crate::config::ServeConfig;

/// Where the kernel says which processors lie beside which memory.
const NODES: &str = "/sys/devices/system/node";

/// Whether each thread that computes keeps to a processor of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CpuBinding {
    /// On hosts with several memory nodes.
    Auto,
    /// It does.
    Cores,
    /// The system puts threads where it likes.
    None,
}

/// Processors that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The processors of each rank of each replica, in their order; none where the system puts threads where it likes.
pub fn cpus(config: &ServeConfig) -> Vec<CpuList> {
    let Ok(allowed) = CpuList::allowed() else { return Vec::new() };
    // There the CPU only hands work out.
    if config.placement.device.device == DeviceChoice::Cuda || config.placement.cpus == CpuBinding::None {
        return Vec::new();
    }
    let ranks = config.groups.replicas as usize * config.groups.ranks as usize;
    let host = Topology::read(Path::new(NODES), &allowed);
    let nodes = host.nodes();
    if ranks < nodes {
        info!(
            nodes,
            ranks, "ranks span memory nodes; as many ranks as nodes have their weights beside them"
        );
    }
    let bound = host.bound(config.placement.cpus, ranks);
    if bound.is_none() && config.placement.cpus == CpuBinding::Cores {
        warn!(ranks, cpus = %allowed, "more ranks than processors: none is bound to any");
    }
    bound.unwrap_or_default()
}

/// The processors a run may use, by the memory node they lie beside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// At least one, none of them empty.
    nodes: Vec<Vec<u32>>,
}

impl Topology {
    /// What `nodes`, the kernel's folder of memory nodes, says of the processors in `allowed`. Where it says nothing, all
    /// lie beside the same memory.
    pub fn read(nodes: &Path, allowed: &CpuList) -> Self {
        let entries = std::fs::read_dir(nodes).into_iter().flatten().flatten();
        let mut found: Vec<(u32, Vec<u32>)> = entries
            .filter_map(|entry| {
                let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
                let list = std::fs::read_to_string(entry.path().join("cpulist")).ok()?;
                let list: CpuList = list.parse().ok()?;
                let usable = |cpu: &u32| allowed.as_slice().contains(cpu);
                Some((number, list.as_slice().iter().copied().filter(usable).collect()))
            })
            .filter(|(_, cpus): &(u32, Vec<u32>)| !cpus.is_empty())
            .collect();
        found.sort_unstable();
        let mut nodes: Vec<Vec<u32>> = found.into_iter().map(|(_, cpus)| cpus).collect();
        // A processor of no node would be left idle.
        if nodes.iter().map(Vec::len).sum::<usize>() != allowed.as_slice().len() || nodes.is_empty() {
            nodes = vec![allowed.as_slice().to_vec()];
        }
        Self { nodes }
    }

    /// How many memory nodes there are.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// The processors of each of `ranks`, where its threads are to be bound to some. `None` where the system puts them
    /// where it likes, which it also does where there are more ranks than processors.
    pub fn bound(&self, binding: CpuBinding, ranks: usize) -> Option<Vec<CpuList>> {
        match binding {
            CpuBinding::Auto if self.nodes() == 1 => None,
            CpuBinding::Auto | CpuBinding::Cores => self.share_out(ranks),
            CpuBinding::None => None,
        }
    }

    /// The processors of each of `ranks`, as many for each and none for two. A rank's lie beside one memory where there
    /// are at least as many ranks as memories; neighbouring ranks, which belong to one group, lie beside the same.
    /// `None` where there are more ranks than processors.
    pub fn share_out(&self, ranks: usize) -> Option<Vec<CpuList>> {
        let mut shares: Vec<Vec<u32>> = Vec::with_capacity(ranks);
        if ranks < self.nodes.len() {
            for rank in 0..ranks {
                let nodes = cut(self.nodes.len(), ranks, rank);
                shares.push(self.nodes[nodes].concat());
            }
        } else {
            for (index, node) in self.nodes.iter().enumerate() {
                let here = cut(ranks, self.nodes.len(), index).len();
                shares.extend((0..here).map(|rank| node[cut(node.len(), here, rank)].to_vec()));
            }
        }
        // All ranks of a step wait for the one with the fewest.
        let threads = shares.iter().map(Vec::len).min().filter(|threads| *threads > 0)?;
        Some(shares.into_iter().map(|share| CpuList::new(share.into_iter().take(threads))).collect())
    }
}

/// Part `index` of `0..items` cut into `parts` parts whose lengths differ by one at most.
fn cut(items: usize, parts: usize, index: usize) -> std::ops::Range<usize> {
    items * index / parts..items * (index + 1) / parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(nodes: &[&str]) -> Topology {
        let nodes = nodes.iter().map(|list| list.parse::<CpuList>().unwrap().as_slice().to_vec()).collect();
        Topology { nodes }
    }

    fn shares(host: &Topology, ranks: usize) -> Option<Vec<String>> {
        Some(host.share_out(ranks)?.iter().map(ToString::to_string).collect())
    }

    fn some(lists: &[&str]) -> Option<Vec<String>> {
        Some(lists.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn ranks_stay_beside_one_memory_where_there_are_enough_of_them() {
        let two_sockets = host(&["0-7,16-23", "8-15,24-31"]);
        assert_eq!(shares(&two_sockets, 1), some(&["0-31"]));
        assert_eq!(shares(&two_sockets, 2), some(&["0-7,16-23", "8-15,24-31"]));
        assert_eq!(shares(&two_sockets, 4), some(&["0-7", "16-23", "8-15", "24-31"]));
        let four_nodes = host(&["0-3", "4-7", "8-11", "12-15"]);
        assert_eq!(shares(&four_nodes, 2), some(&["0-7", "8-15"]));
    }

    #[test]
    fn ranks_have_as_many_processors_as_the_one_with_the_fewest() {
        assert_eq!(shares(&host(&["0-3", "4-5"]), 2), some(&["0-1", "4-5"]));
        assert_eq!(shares(&host(&["0-6"]), 2), some(&["0-2", "3-5"]));
        assert_eq!(shares(&host(&["0-1"]), 3), None);
        assert_eq!(shares(&host(&["0-3", "4"]), 4), None, "two ranks on one processor");
    }

    #[test]
    fn threads_are_bound_where_memory_is_not_the_same_for_all_of_them() {
        let (one, two) = (host(&["0-7"]), host(&["0-3", "4-7"]));
        assert_eq!(one.bound(CpuBinding::Auto, 2), None);
        assert_eq!(one.bound(CpuBinding::Cores, 2), one.share_out(2));
        assert_eq!(two.bound(CpuBinding::Auto, 2), two.share_out(2));
        assert_eq!(two.bound(CpuBinding::None, 2), None);
        assert_eq!(two.bound(CpuBinding::Auto, 9), None);
    }

    #[test]
    fn a_host_is_read_as_the_kernel_shows_it() {
        let folder = tempfile::tempdir().unwrap();
        let node = |name: &str, list: &str| {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join("cpulist"), list).unwrap();
        };
        node("node10", "8-11\n");
        node("node2", "0-3\n");
        // Memory without processors.
        node("node3", "\n");
        std::fs::write(folder.path().join("possible"), "0-10\n").unwrap();
        let allowed = |list: &str| list.parse::<CpuList>().unwrap();
        let read = |list| Topology::read(folder.path(), &allowed(list));
        assert_eq!(read("0-3,8-11"), host(&["0-3", "8-11"]));
        assert_eq!(read("2-3,8"), host(&["2-3", "8"]), "what a container may use");
        assert_eq!(read("0-3"), host(&["0-3"]));
        assert_eq!(read("0-4,8"), host(&["0-4,8"]), "a processor that is in no node");
        assert_eq!(Topology::read(Path::new("/no/such/folder"), &allowed("0-1")), host(&["0-1"]));
    }

    proptest! {
        #[test]
        fn processors_are_handed_out_once_and_evenly(
            sizes in prop::collection::vec(1_u32..9, 1..5),
            ranks in 1_usize..20,
        ) {
            let mut next = 0;
            let nodes: Vec<Vec<u32>> = sizes.iter().map(|size| {
                let node = (next..next + size).collect();
                next += size;
                node
            }).collect();
            let host = Topology { nodes };
            let Some(shares) = host.share_out(ranks) else {
                prop_assert!(ranks > sizes.iter().min().map_or(0, |size| *size as usize));
                return Ok(());
            };
            prop_assert_eq!(shares.len(), ranks);
            let all: Vec<u32> = shares.iter().flat_map(|share| share.as_slice().to_vec()).collect();
            prop_assert_eq!(CpuList::new(all.clone()).as_slice().len(), all.len());
            for share in &shares {
                prop_assert_eq!(share.as_slice().len(), shares[0].as_slice().len());
                let beside = host.nodes.iter().filter(|node| share.as_slice().iter().any(|cpu| node.contains(cpu)));
                prop_assert!(ranks < sizes.len() || beside.count() == 1);
            }
        }
    }
}
