//! All ranks as one: every rank gets the same steps, the first to fail fails them.

use futures::StreamExt;
use futures::future::try_join_all;
use futures::stream::FuturesUnordered;
use lockstep_proto::{Epoch, Rank, ShardDescription, Step, StepOutput, StepTimings, TraceParent};

use super::client::RankClient;
use super::{GroupConfig, ShardAddress, ShardError, ShardGroup};

/// Ranks in other processes or on other hosts, reached by gRPC.
pub struct RemoteGroup {
    addresses: Vec<ShardAddress>,
    ranks: Vec<RankClient>,
    /// To the oldest step that is not finished, as far as they have come; in the order of ranks.
    answers: Vec<Option<StepOutput>>,
    timings: Vec<StepTimings>,
}

impl RemoteGroup {
    /// Ranks at `addresses`, in the order of ranks. Nothing is connected yet.
    pub fn new(addresses: Vec<ShardAddress>) -> Self {
        Self { addresses, ranks: Vec::new(), answers: Vec::new(), timings: Vec::new() }
    }
}

impl ShardGroup for RemoteGroup {
    async fn describe(&mut self, lost: Option<Epoch>) -> Result<Vec<ShardDescription>, ShardError> {
        // Connections of an earlier incarnation lead nowhere.
        self.ranks.clear();
        let connecting =
            (0..).zip(&self.addresses).map(|(rank, address)| RankClient::connect(Rank(rank), address));
        self.ranks = try_join_all(connecting).await?;
        self.answers = vec![None; self.ranks.len()];
        try_join_all(self.ranks.iter_mut().map(|rank| rank.describe(lost))).await
    }

    async fn configure(&mut self, config: GroupConfig) -> Result<(), ShardError> {
        let steps = try_join_all(self.ranks.iter_mut().map(|rank| rank.configure(config))).await?;
        // None of them takes a step of an earlier router any more. One that has begun a step that another was not
        // given would exchange data of that step with the other's next.
        if steps.iter().any(|steps_of_one| Some(steps_of_one) != steps.first()) {
            return Err(ShardError::OutOfStep { epoch: config.epoch, steps });
        }
        try_join_all(self.ranks.iter_mut().map(RankClient::open)).await?;
        Ok(())
    }

    fn begin(&mut self, step: Step, traces: &[TraceParent]) -> Result<(), ShardError> {
        self.ranks.iter_mut().try_for_each(|rank| rank.begin(step.clone(), traces))
    }

    async fn finish(&mut self) -> Result<StepOutput, ShardError> {
        let missing = self.ranks.iter_mut().zip(&mut self.answers).filter(|(_, answer)| answer.is_none());
        let mut computing: FuturesUnordered<_> = missing
            .map(|(rank, answer)| async {
                *answer = Some(rank.finish().await?);
                Ok::<_, ShardError>(())
            })
            .collect();
        while let Some(computed) = computing.next().await {
            computed?;
        }
        drop(computing);
        let outputs: Vec<StepOutput> = self.answers.iter_mut().filter_map(Option::take).collect();
        self.timings.clear();
        self.timings.extend(outputs.iter().map(|output| output.timings));
        let first = outputs.into_iter().next();
        first.ok_or_else(|| ShardError::NoGroup("there are no ranks".to_owned()))
    }

    fn timings(&self) -> &[StepTimings] {
        &self.timings
    }

    async fn lost(&mut self) -> ShardError {
        let mut watching: FuturesUnordered<_> = self.ranks.iter_mut().map(RankClient::lost).collect();
        let first = watching.next().await;
        first.unwrap_or_else(|| ShardError::NoGroup("there are no ranks".to_owned()))
    }
}
