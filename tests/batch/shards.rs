use std::collections::BTreeMap;

use animatelcm::batch::{Found, Shard};

fn auto(variables: &[(&str, &str)], shards: Option<usize>) -> Result<Found, String> {
    let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
    Shard::auto(&|name| variables.get(name).map(|value| (*value).to_owned()), shards)
        .map_err(|error| format!("{error}; {}", error.hint().unwrap_or_default()))
}

/// The variables of a task of a Slurm array.
fn array(id: &'static str, range: [&'static str; 4]) -> Vec<(&'static str, &'static str)> {
    let [min, max, step, count] = range;
    vec![
        ("SLURM_ARRAY_TASK_ID", id),
        ("SLURM_ARRAY_TASK_MIN", min),
        ("SLURM_ARRAY_TASK_MAX", max),
        ("SLURM_ARRAY_TASK_STEP", step),
        ("SLURM_ARRAY_TASK_COUNT", count),
    ]
}

/// What a batch script of Slurm with two tasks sees, although it runs once.
const SCRIPT: [(&str, &str); 3] =
    [("SLURM_JOB_ID", "7"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "2")];

/// What `srun` adds in the second of two tasks.
const STEP: [(&str, &str); 4] = [
    ("SLURM_STEP_ID", "0"),
    ("SLURM_PROCID", "1"),
    ("SLURM_NTASKS", "2"),
    ("SLURM_STEP_NUM_TASKS", "2"),
];

#[test]
fn schedulers_say_which_part_it_is() {
    let step_of_array = |id| [&array(id, ["2", "6", "2", "3"])[..], &STEP].concat();
    for (variables, shards, wanted, source) in [
        (vec![("ANIMATELCM_SHARD", "2/8")], None, "2/8", "ANIMATELCM_SHARD"),
        (
            vec![("OMPI_COMM_WORLD_RANK", "3"), ("OMPI_COMM_WORLD_SIZE", "4")],
            None,
            "4/4",
            "OMPI_COMM_WORLD_RANK",
        ),
        (vec![("PMI_RANK", "0"), ("PMI_SIZE", "4")], None, "1/4", "PMI_RANK"),
        (STEP.to_vec(), None, "2/2", "SLURM_PROCID"),
        ([&SCRIPT[..], &STEP].concat(), None, "2/2", "SLURM_PROCID"),
        // `--array=0-3`, `--array=1-7:2`, `--array=5` of Slurm 22.05.
        (array("0", ["0", "3", "1", "4"]), None, "1/4", "SLURM_ARRAY_TASK_ID"),
        (array("3", ["0", "3", "1", "4"]), None, "4/4", "SLURM_ARRAY_TASK_ID"),
        (array("5", ["1", "7", "2", "4"]), None, "3/4", "SLURM_ARRAY_TASK_ID"),
        (array("5", ["5", "5", "1", "1"]), None, "1/1", "SLURM_ARRAY_TASK_ID"),
        // A task by itself is the one that it was in the whole array.
        (array("5", ["5", "5", "1", "1"]), Some(8), "6/8", "SLURM_ARRAY_TASK_ID"),
        (array("3", ["1", "7", "1", "3"]), Some(8), "4/8", "SLURM_ARRAY_TASK_ID"),
        // Steps within an array: every task of each.
        (step_of_array("2"), None, "2/6", "SLURM_ARRAY_TASK_ID and SLURM_PROCID"),
        (step_of_array("6"), None, "6/6", "SLURM_ARRAY_TASK_ID and SLURM_PROCID"),
        (vec![("JOB_COMPLETION_INDEX", "2")], Some(5), "3/5", "JOB_COMPLETION_INDEX"),
        (
            vec![("AWS_BATCH_JOB_ARRAY_INDEX", "0"), ("AWS_BATCH_JOB_ARRAY_SIZE", "3")],
            None,
            "1/3",
            "AWS_BATCH_JOB_ARRAY_INDEX",
        ),
        (
            vec![("CLOUD_RUN_TASK_INDEX", "1"), ("CLOUD_RUN_TASK_COUNT", "2")],
            None,
            "2/2",
            "CLOUD_RUN_TASK_INDEX",
        ),
    ] {
        let found = auto(&variables, shards).unwrap_or_else(|e| panic!("{variables:?}: {e}"));
        assert_eq!((found.shard.to_string().as_str(), found.source.as_str()), (wanted, source));
        assert!(found.others.is_empty(), "{variables:?}: {found:?}");
    }
}

#[test]
fn the_first_of_two_counts_and_the_other_is_named() {
    let both = [("JOB_COMPLETION_INDEX", "2"), ("ANIMATELCM_SHARD", "1/4")];
    let found = auto(&both, None).unwrap();
    assert_eq!(found.shard.to_string(), "1/4");
    assert_eq!(found.others, ["JOB_COMPLETION_INDEX"]);
}

#[test]
fn environments_that_make_no_sense_are_refused() {
    for (variables, shards, part) in [
        (vec![], None, "none of ANIMATELCM_SHARD"),
        // A plain script would do half of the work.
        (SCRIPT.to_vec(), None, "srun"),
        (array("3", ["1", "7", "1", "3"]), None, "have holes; --shards N"),
        (array("4", ["1", "7", "2", "4"]), None, "have holes"),
        (vec![("SLURM_ARRAY_TASK_ID", "4")], None, "SLURM_ARRAY_TASK_MIN is not set"),
        (array("8", ["0", "8", "1", "9"]), Some(8), "SLURM_ARRAY_TASK_ID is 8, of 8"),
        (vec![("JOB_COMPLETION_INDEX", "2")], None, "nothing the count; --shards N"),
        (vec![("JOB_COMPLETION_INDEX", "x")], Some(3), "JOB_COMPLETION_INDEX is `x`"),
        (vec![("PMI_RANK", "4"), ("PMI_SIZE", "4")], None, "PMI_RANK is 4 of 4"),
        (vec![("PMI_RANK", "1")], None, "PMI_SIZE is not set"),
        (vec![("ANIMATELCM_SHARD", "0/4")], None, "`0/4` is not I/N"),
    ] {
        let error = auto(&variables, shards).unwrap_err();
        assert!(error.contains(part), "{variables:?}: {error}");
    }
}

#[test]
fn shards_hold_every_item_once() {
    for count in [1, 2, 3, 8] {
        let shards: Vec<Shard> =
            (1..=count).map(|i| format!("{i}/{count}").parse().unwrap()).collect();
        for number in 1..50 {
            let holders = shards.iter().filter(|shard| shard.holds(number)).count();
            assert_eq!(holders, 1, "{number} of {count}");
        }
    }
    for wrong in ["0/2", "3/2", "1", "a/b", "", "1/0", "-1/2"] {
        assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
    }
}
