//! Full blocks by what they hold: a tree whose edges are a block's tokens, one tree a salt.
//!
//! A node is a cached block, named by its [`BlockId`]. Keys are compared token by token. It counts no
//! references itself: it is told when a block gains its first or loses its last one. Whoever holds a block
//! holds the whole path to it, so what nobody holds can always be evicted, leaves first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lockstep_proto::{BlockId, Blocks, TokenId, Tokens};

use crate::invariants::Violation;
use crate::submission::CacheSalt;

type Children = BTreeMap<Arc<[TokenId]>, BlockId>;

/// The prefix tree.
#[derive(Debug)]
pub(crate) struct PrefixIndex {
    roots: BTreeMap<CacheSalt, Children>,
    /// By block: its node, where it is cached.
    nodes: Vec<Option<Node>>,
    /// Nodes nobody holds and nothing follows, least recently used first.
    evictable: BTreeSet<(Tick, BlockId)>,
    /// Nodes nobody holds.
    unreferenced: Blocks,
    clock: Tick,
}

#[derive(Debug)]
struct Node {
    parent: Parent,
    /// What the block holds.
    tokens: Arc<[TokenId]>,
    children: Children,
    use_state: Use,
}

/// Whether tables hold a node's block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Held,
    /// Since then, nobody.
    Idle(Tick),
}

/// Counts uses, to order them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Tick(u64);

/// What a block's tokens follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parent {
    /// Nothing: they begin a context of this salt.
    Root(CacheSalt),
    /// The tokens of this block and of all before it.
    Block(BlockId),
}

/// What became of a block that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Insertion {
    /// It is a node.
    Inserted,
    /// It is a node in place of an idle one with the same tokens, which is not cached any more.
    Replaced(BlockId),
    /// A block with the same tokens is there and in use; the offered one stays private.
    Occupied,
}

impl PrefixIndex {
    pub(super) fn new(blocks: Blocks) -> Self {
        Self {
            roots: BTreeMap::new(),
            nodes: (0..blocks.0).map(|_| None).collect(),
            evictable: BTreeSet::new(),
            unreferenced: Blocks::ZERO,
            clock: Tick(0),
        }
    }

    /// The longest path whose whole blocks are the beginning of `tokens`.
    pub(super) fn find(&self, salt: CacheSalt, tokens: &[TokenId], block_size: Tokens) -> Vec<BlockId> {
        let mut path = Vec::new();
        let mut children = self.roots.get(&salt);
        for chunk in tokens.chunks_exact(block_size.len()) {
            let Some(&block) = children.and_then(|children| children.get(chunk)) else { break };
            path.push(block);
            children = self.nodes[block.index()].as_ref().map(|node| &node.children);
        }
        path
    }

    /// Offers a block that a table holds and whose contents are complete, after `parent`, which the same
    /// table holds.
    pub(super) fn insert(&mut self, parent: Parent, tokens: &[TokenId], block: BlockId) -> Insertion {
        let Some(occupant) = self.children_of(parent).get(tokens).copied() else {
            let tokens: Arc<[TokenId]> = tokens.into();
            self.children_of(parent).insert(tokens.clone(), block);
            self.nodes[block.index()] =
                Some(Node { parent, tokens, children: BTreeMap::new(), use_state: Use::Held });
            return Insertion::Inserted;
        };
        match self.node(occupant).use_state {
            Use::Held => Insertion::Occupied,
            Use::Idle(_) => {
                self.replace(occupant, block);
                Insertion::Replaced(occupant)
            }
        }
    }

    /// A table holds `block`, which nobody did.
    pub(super) fn on_held(&mut self, block: BlockId) {
        let Some(node) = self.nodes[block.index()].as_mut() else { return };
        if let Use::Idle(since) = node.use_state {
            node.use_state = Use::Held;
            self.evictable.remove(&(since, block));
            self.unreferenced -= Blocks(1);
        }
    }

    /// Nobody holds `block` any more. Returns whether it is cached; if not, it is free.
    pub(super) fn on_idle(&mut self, block: BlockId) -> Cached {
        let clock = &mut self.clock;
        let Some(node) = self.nodes[block.index()].as_mut() else { return Cached::No };
        clock.0 += 1;
        node.use_state = Use::Idle(*clock);
        self.unreferenced += Blocks(1);
        if node.children.is_empty() {
            self.evictable.insert((*clock, block));
        }
        Cached::Yes
    }

    /// Gives up the least recently used block that nobody holds.
    pub(super) fn evict(&mut self) -> Option<BlockId> {
        let (_, block) = self.evictable.pop_first()?;
        self.unreferenced -= Blocks(1);
        let node = self.nodes[block.index()].take().expect("an evictable block is a node");
        let siblings = self.children_of(node.parent);
        siblings.remove(&node.tokens);
        if siblings.is_empty() {
            self.on_childless(node.parent);
        }
        Some(block)
    }

    /// Nodes nobody holds; all of them can be evicted.
    pub(super) fn unreferenced(&self) -> Blocks {
        self.unreferenced
    }

    /// Checks the tree against itself and against the tables' `references` to each block.
    pub(super) fn check(&self, references: impl Fn(BlockId) -> u32) -> Result<(), Violation> {
        let mut unreferenced = Blocks::ZERO;
        let mut evictable = BTreeSet::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let (block, Some(node)) = (BlockId(Blocks::of_len(index).0), node) else { continue };
            self.check_links(block, node)?;
            let held = references(block);
            if let Parent::Block(parent) = node.parent
                && references(parent) < held
            {
                return Err(Violation::of(format!("block {block} is held without its parent {parent}")));
            }
            match node.use_state {
                Use::Held if held > 0 => {}
                Use::Idle(since) if held == 0 => {
                    unreferenced += Blocks(1);
                    if node.children.is_empty() {
                        evictable.insert((since, block));
                    }
                }
                Use::Held | Use::Idle(_) => {
                    return Err(Violation::of(format!(
                        "cached block {block} is {:?} with {held} references",
                        node.use_state
                    )));
                }
            }
        }
        if (unreferenced, &evictable) != (self.unreferenced, &self.evictable) {
            return Err(Violation::of(
                "the prefix tree's idle blocks differ from its count and order of them",
            ));
        }
        Ok(())
    }

    /// Whether the tree has `block` after `parent`, holding `tokens`.
    pub(super) fn is_node(&self, block: BlockId, parent: Parent, tokens: &[TokenId]) -> bool {
        let node = self.nodes[block.index()].as_ref();
        node.is_some_and(|node| node.parent == parent && *node.tokens == *tokens)
    }

    /// Whether `block` is cached at all.
    pub(super) fn contains(&self, block: BlockId) -> bool {
        self.nodes[block.index()].is_some()
    }

    fn check_links(&self, block: BlockId, node: &Node) -> Result<(), Violation> {
        let siblings = match node.parent {
            Parent::Root(salt) => self.roots.get(&salt),
            Parent::Block(parent) => self.nodes[parent.index()].as_ref().map(|parent| &parent.children),
        };
        if siblings.and_then(|siblings| siblings.get(&node.tokens)) != Some(&block) {
            return Err(Violation::of(format!("cached block {block} is not among its parent's children")));
        }
        for &child in node.children.values() {
            let child_node = self.nodes[child.index()].as_ref();
            if child_node.is_none_or(|child| child.parent != Parent::Block(block)) {
                return Err(Violation::of(format!(
                    "child {child} of cached block {block} follows another"
                )));
            }
        }
        Ok(())
    }

    fn on_childless(&mut self, parent: Parent) {
        match parent {
            Parent::Root(salt) => {
                self.roots.remove(&salt);
            }
            Parent::Block(block) => {
                if let Use::Idle(since) = self.node(block).use_state {
                    self.evictable.insert((since, block));
                }
            }
        }
    }

    /// Puts `block`, which is held, in the place of `idle`: the same tokens, the same followers.
    fn replace(&mut self, idle: BlockId, block: BlockId) {
        self.on_held(idle);
        let node = self.nodes[idle.index()].take().expect("the block to replace is a node");
        self.children_of(node.parent).insert(node.tokens.clone(), block);
        for &child in node.children.values() {
            let child = self.nodes[child.index()].as_mut().expect("a child is a node");
            child.parent = Parent::Block(block);
        }
        self.nodes[block.index()] = Some(node);
    }

    fn node(&self, block: BlockId) -> &Node {
        self.nodes[block.index()].as_ref().expect("a block of the tree is a node")
    }

    fn children_of(&mut self, parent: Parent) -> &mut Children {
        match parent {
            Parent::Root(salt) => self.roots.entry(salt).or_default(),
            Parent::Block(block) => {
                let node = self.nodes[block.index()].as_mut().expect("the parent of a block is a node");
                &mut node.children
            }
        }
    }
}

/// Whether a block stands in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cached {
    Yes,
    No,
}
