//! Which of several processes this is: every `count`-th item from `index` on is its own.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// One of several equal parts of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    count: usize,
}

impl Default for Shard {
    /// All of it.
    fn default() -> Self {
        Self { index: 0, count: 1 }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.count)
    }
}

impl FromStr for Shard {
    type Err = Error;

    /// Reads `2/8`, the second of eight.
    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('/');
        let parts = parts.and_then(|(i, n)| Some((i.trim().parse().ok()?, n.trim().parse().ok()?)));
        match parts {
            Some((index @ 1.., count)) if index <= count => Ok(Self { index: index - 1, count }),
            _ => {
                let reason = format!("`{text}` is not I/N with I from 1 to N");
                Err(Error::request("shard", reason).with_hint("2/8 is the second of eight"))
            }
        }
    }
}

impl Shard {
    /// Whether an item is in it; numbers count from 1.
    pub fn holds(self, number: usize) -> bool {
        number.wrapping_sub(1) % self.count == self.index
    }

    /// The name of its report.
    pub fn report(self) -> String {
        format!("report.{}-of-{}.jsonl", self.index + 1, self.count)
    }

    /// The shard that the environment of a scheduler says, perhaps of a given number of shards.
    ///
    /// # Errors
    ///
    /// When no known variable is set, or those that are make no sense.
    pub fn auto(
        environment: &dyn Fn(&str) -> Option<String>,
        shards: Option<usize>,
    ) -> Result<Found> {
        let there = |source: &&Source| environment(source.sign()).is_some();
        let mut sources = SOURCES.iter().filter(there);
        let Some(source) = sources.next() else {
            let signs: Vec<&str> = SOURCES.iter().map(Source::sign).collect();
            let reason = format!("auto: none of {} is set", signs.join(", "));
            return Err(Error::request("shard", reason).with_hint(
                "in a batch script of Slurm: srun, or sbatch --array; elsewhere --shard I/N",
            ));
        };
        let variables = Variables { environment, shards };
        let (shard, read) = variables.shard(source)?;
        let others = sources.map(Source::sign).filter(|sign| !read.contains(sign)).collect();
        Ok(Found { shard, source: read.join(" and "), others })
    }
}

/// A shard, and where it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The shard.
    pub shard: Shard,
    /// The variables that say it.
    pub source: String,
    /// Variables of other schedulers that are set, too, and do not count.
    pub others: Vec<&'static str>,
}

/// Where a scheduler says which process this is.
enum Source {
    /// `i/n`, counted from 1.
    Own(&'static str),
    /// A variable with the index from 0, and one with the count, if there is one.
    Index(&'static str, Option<&'static str>),
    /// The same of one step or program, of which every task of a Slurm array may run its own. The first variable tells
    /// that there is one.
    Rank(&'static str, &'static str, &'static str),
    /// An array of Slurm.
    Array,
}

/// In the order in which they count. In a batch script of Slurm `SLURM_PROCID` is 0 and `SLURM_NTASKS` the number of
/// tasks although it runs once; `SLURM_STEP_ID` is set only in tasks that srun starts.
static SOURCES: [Source; 8] = [
    Source::Own("ANIMATELCM_SHARD"),
    Source::Rank("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    Source::Rank("PMI_RANK", "PMI_RANK", "PMI_SIZE"),
    Source::Rank("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    Source::Array,
    Source::Index("JOB_COMPLETION_INDEX", None),
    Source::Index("AWS_BATCH_JOB_ARRAY_INDEX", Some("AWS_BATCH_JOB_ARRAY_SIZE")),
    Source::Index("CLOUD_RUN_TASK_INDEX", Some("CLOUD_RUN_TASK_COUNT")),
];

const ARRAY: &str = "SLURM_ARRAY_TASK_ID";

impl Source {
    /// The variable that tells that it is there.
    fn sign(&self) -> &'static str {
        match self {
            Self::Own(name) | Self::Index(name, _) | Self::Rank(name, ..) => name,
            Self::Array => ARRAY,
        }
    }
}

struct Variables<'a> {
    environment: &'a dyn Fn(&str) -> Option<String>,
    shards: Option<usize>,
}

impl Variables<'_> {
    /// The shard of a source, and the variables that it was read from.
    fn shard(&self, source: &Source) -> Result<(Shard, Vec<&'static str>)> {
        match source {
            Source::Own(name) => {
                let text = (self.environment)(name).unwrap_or_default();
                let shard: Shard =
                    text.parse().map_err(|_| wrong(format!("{name}: `{text}` is not I/N")))?;
                let shard = self.checked(*name, shard.index, Some(shard.count))?;
                Ok((shard, vec![*name]))
            }
            Source::Index(index, count) => {
                let number = self.number(index)?;
                let count = match (self.shards, count) {
                    (None, Some(count)) => Some(self.number(count)?),
                    _ => None,
                };
                Ok((self.checked(*index, number, count)?, vec![*index]))
            }
            Source::Array => {
                let (index, count) = self.array()?;
                Ok((self.checked(ARRAY, index, count)?, vec![ARRAY]))
            }
            Source::Rank(_, rank, size) => {
                let (index, size) = (self.number(rank)?, self.number(size)?);
                if index >= size {
                    return Err(wrong(format!("{rank} is {index} of {size}")));
                }
                if (self.environment)(ARRAY).is_none() {
                    let count = self.shards.is_none().then_some(size);
                    return Ok((self.checked(*rank, index, count)?, vec![*rank]));
                }
                let (task, tasks) = self.array()?;
                let joined = task.checked_mul(size).and_then(|before| before.checked_add(index));
                let count = tasks.map(|tasks| tasks.checked_mul(size));
                let (Some(joined), None | Some(Some(_))) = (joined, count) else {
                    return Err(wrong(format!("{ARRAY} is too large")));
                };
                let shard = self.checked(format!("{ARRAY} and {rank}"), joined, count.flatten())?;
                Ok((shard, vec![ARRAY, *rank]))
            }
        }
    }

    /// The index of a task of an array; with its count unless that is given.
    fn array(&self) -> Result<(usize, Option<usize>)> {
        let id = self.number(ARRAY)?;
        if self.shards.is_some() {
            return Ok((id, None));
        }
        let part = |name: &str| self.number(&format!("SLURM_ARRAY_TASK_{name}"));
        let (min, max, count) = (part("MIN")?, part("MAX")?, part("COUNT")?);
        let step = part("STEP")?.max(1);
        if !(min..=max).contains(&id) || (max - min) / step + 1 != count || (id - min) % step != 0 {
            let reason =
                format!("the array's {count} tasks from {min} to {max} by {step} have holes");
            return Err(wrong(reason).with_hint(
                "--shards N takes the task's number as it is: --array=0-7 or a part of it, --shards 8",
            ));
        }
        Ok(((id - min) / step, Some(count)))
    }

    /// A shard whose index is below its count.
    fn checked(
        &self,
        name: impl fmt::Display,
        index: usize,
        count: Option<usize>,
    ) -> Result<Shard> {
        let Some(count) = self.shards.or(count) else {
            return Err(wrong(format!("{name} has the index and nothing the count"))
                .with_hint("--shards N says how many there are"));
        };
        if index >= count {
            return Err(wrong(format!("{name} is {index}, of {count} counted from 0")));
        }
        Ok(Shard { index, count })
    }

    fn number(&self, name: &str) -> Result<usize> {
        let Some(text) = (self.environment)(name) else {
            return Err(wrong(format!("{name} is not set")));
        };
        text.trim().parse().map_err(|_| wrong(format!("{name} is `{text}`")))
    }
}

fn wrong(reason: impl fmt::Display) -> Error {
    Error::request("shard", format!("auto: {reason}"))
}
