//! The order of waiting: who has run before, then fair shares of tokens between tenants, then priority and
//! arrival.
//!
//! The tenant that was given the fewest tokens goes first, and every token computed for a tenant counts:
//! those of a prompt when its sequence is admitted, those of its output as they come (the virtual token
//! counter of Sheng et al., "Fairness in Serving Large Language Models", 2024). A tenant that comes back
//! begins at the least of those that are here, so that being away earns nothing. What a tenant waits for is
//! then bounded by what runs and by its own requests, however many others send.

use std::collections::BTreeMap;
use std::time::Instant;

use lockstep_proto::{SequenceId, Tokens};

use crate::pace::Pace;
use crate::sequence::{Arrival, Sequence};
use crate::service::{Priority, Tenant};

/// Sequences without blocks.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// Those that ran, by arrival: they lost their blocks or their group, and go before all others.
    returned: BTreeMap<Arrival, Sequence>,
    /// By tenant: what it was given and what waits of it.
    accounts: BTreeMap<Tenant, Account>,
    /// What times are counted from: the first arrival.
    began: Option<Instant>,
}

#[derive(Debug, Default)]
struct Account {
    /// Tokens, in comparison with other accounts only.
    given: u64,
    waiting: BTreeMap<Turn, Sequence>,
}

/// A sequence's place among those of its tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    /// When it arrived, less the head start of its priority; milliseconds since the first arrival.
    since_ms: i64,
    arrival: Arrival,
}

impl Turn {
    pub(crate) fn arrival(self) -> Arrival {
        self.arrival
    }
}

impl Queue {
    /// The place of a sequence that arrives now.
    pub(crate) fn turn(&mut self, arrival: Arrival, priority: Priority, now: Instant) -> Turn {
        let began = *self.began.get_or_insert(now);
        let since = now.saturating_duration_since(began).as_millis();
        let since_ms = i64::try_from(since).unwrap_or(i64::MAX).saturating_sub(priority.head_start_ms());
        Turn { since_ms, arrival }
    }

    /// A new arrival, while sequences of the tenants `running` run.
    pub(crate) fn push<'a>(&mut self, sequence: Sequence, running: impl Iterator<Item = &'a Tenant>) {
        self.open_account(&sequence.standing.tenant, running);
        self.put_back(sequence);
    }

    /// Takes a sequence that was here or ran before: at the place it had, or before all that never ran.
    pub(crate) fn put_back(&mut self, sequence: Sequence) {
        if sequence.has_run() {
            self.returned.insert(sequence.arrival(), sequence);
        } else {
            let account = self.accounts.entry(sequence.standing.tenant.clone()).or_default();
            account.waiting.insert(sequence.standing.turn, sequence);
        }
    }

    /// Takes out the one to be admitted next.
    pub(crate) fn pop(&mut self) -> Option<Sequence> {
        if let Some((_, sequence)) = self.returned.pop_first() {
            return Some(sequence);
        }
        let accounts = self.accounts.values_mut().filter(|account| !account.waiting.is_empty());
        let account = accounts.min_by_key(|account| account.given)?;
        account.waiting.pop_first().map(|(_, sequence)| sequence)
    }

    /// Tokens were computed for `tenant`.
    pub(crate) fn charge(&mut self, tenant: &Tenant, tokens: Tokens) {
        if let Some(account) = self.accounts.get_mut(tenant) {
            account.given += u64::from(tokens.0);
        }
    }

    /// Forgets `sequence`, if it waits.
    pub(crate) fn remove(&mut self, sequence: SequenceId) -> Option<Sequence> {
        let found = self.iter().find(|waiting| waiting.id == sequence)?;
        if found.has_run() {
            let arrival = found.arrival();
            return self.returned.remove(&arrival);
        }
        let (tenant, turn) = (found.standing.tenant.clone(), found.standing.turn);
        self.accounts.get_mut(&tenant)?.waiting.remove(&turn)
    }

    /// Takes out those for which `keep` does not hold, oldest first.
    pub(crate) fn extract(&mut self, keep: impl Fn(&Sequence) -> bool) -> Vec<Sequence> {
        let leaving: Vec<_> =
            self.iter().filter(|sequence| !keep(sequence)).map(|sequence| sequence.id).collect();
        let mut extracted: Vec<_> = leaving.into_iter().filter_map(|id| self.remove(id)).collect();
        extracted.sort_by_key(|sequence| sequence.arrival());
        extracted
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.returned.values().chain(self.accounts.values().flat_map(|account| account.waiting.values()))
    }

    pub(crate) fn len(&self) -> usize {
        self.returned.len() + self.accounts.values().map(|account| account.waiting.len()).sum::<usize>()
    }

    /// Tokens known of all of them.
    pub(crate) fn tokens(&self) -> Tokens {
        Tokens::of_len(self.iter().map(|sequence| sequence.known.len()).sum())
    }

    /// Tokens expected to be computed for all of them until they end.
    pub(crate) fn expected_tokens(&self, pace: &Pace) -> u64 {
        self.iter().map(|sequence| sequence.expected_tokens(pace)).sum()
    }

    /// Tokens expected to be computed before a new sequence of `tenant` begins.
    pub(crate) fn tokens_before(&self, tenant: &Tenant, pace: &Pace) -> u64 {
        let expected = |account: &Account| {
            account.waiting.values().map(|sequence| sequence.expected_tokens(pace)).sum::<u64>()
        };
        let own = self.accounts.get(tenant).map_or(0, expected);
        let returned: u64 = self.returned.values().map(|sequence| sequence.expected_tokens(pace)).sum();
        returned + self.accounts.values().map(|account| expected(account).min(own)).sum::<u64>()
    }

    /// Whether each one is where it is looked for.
    pub(crate) fn is_in_order(&self) -> bool {
        let returned =
            self.returned.iter().all(|(at, sequence)| sequence.has_run() && *at == sequence.arrival());
        returned
            && self.accounts.iter().all(|(tenant, account)| {
                account.waiting.iter().all(|(turn, sequence)| {
                    !sequence.has_run()
                        && *turn == sequence.standing.turn
                        && *tenant == sequence.standing.tenant
                })
            })
    }

    /// Lifts a tenant that was away to the least of those that are here, and forgets those that are away
    /// and would begin there too.
    fn open_account<'a>(&mut self, tenant: &Tenant, running: impl Iterator<Item = &'a Tenant>) {
        if self.accounts.get(tenant).is_some_and(|account| !account.waiting.is_empty()) {
            return;
        }
        let mut here: BTreeMap<&Tenant, u64> = running
            .map(|tenant| -> &Tenant { tenant })
            .chain(self.returned.values().map(|sequence| &sequence.standing.tenant))
            .map(|here| (here, self.accounts.get(here).map_or(0, |account| account.given)))
            .collect();
        let is_here = here.contains_key(tenant);
        let waiting = self.accounts.iter().filter(|(_, account)| !account.waiting.is_empty());
        here.extend(waiting.map(|(waiting, account)| (waiting, account.given)));
        let Some(least) = here.values().copied().min() else {
            self.accounts.clear();
            self.accounts.insert(tenant.clone(), Account::default());
            return;
        };
        let away: Vec<_> = self
            .accounts
            .iter()
            .filter(|(name, account)| !here.contains_key(name) && account.given <= least)
            .map(|(name, _)| name.clone())
            .collect();
        for name in away {
            self.accounts.remove(&name);
        }
        let account = self.accounts.entry(tenant.clone()).or_default();
        if !is_here {
            account.given = account.given.max(least);
        }
    }
}
