use std::fs;
use std::path::Path;

use animatelcm::batch::{self, Item, Kind, MOST_ITEMS, Template};
use animatelcm::job::{Folders, Names, key};
use animatelcm::output::Format;
use animatelcm::{Error, Stop};

const FOLDERS: Folders<'_> = Folders { lora: None, embedding: None, has_embeddings: false };

fn list_in(folder: &Path, name: &str, text: &str, template: &str) -> Result<Vec<Item>, Error> {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    let names = Names::new(true).unwrap();
    let template: Template = template.parse()?;
    Ok(batch::list(&path, &template, (&names, FOLDERS), &Stop::default())?.items)
}

fn list(name: &str, text: &str) -> Result<Vec<Item>, Error> {
    list_in(tempfile::tempdir().unwrap().path(), name, text, "{number}")
}

#[track_caller]
fn fails(name: &str, text: &str, part: &str) -> Error {
    let error = list(name, text).unwrap_err();
    let said = format!("{error}; {}", error.hint().unwrap_or_default());
    assert!(said.contains(part), "{text:?}: {said}");
    assert_eq!(error.kind().exit_code(), 2, "{said}");
    assert!(!said.contains('\n'), "{said}");
    error
}

/// Prompt, seed, steps and frames.
fn told(items: &[Item]) -> Vec<(&str, u64, usize, usize)> {
    let told = |item: &Item| {
        let request = &item.job.request;
        (item.seed(), request.sampling.steps, request.frames())
    };
    let prompts = items.iter().map(|item| item.job.request.prompt.text.as_str());
    prompts.zip(items.iter().map(told)).map(|(p, (seed, s, f))| (p, seed, s, f)).collect()
}

#[test]
fn every_form_says_the_same() {
    let jsonl = "\u{feff}{\"prompt\": \"a cat\", \"sampling\": {\"seed\": 1, \"steps\": 2}, \
                 \"size\": {\"frames\": 8}}\r\n\r\n\
                 {\"schema\": \"animatelcm/v1\", \"prompt\": {\"text\": \"42\"}, \"sampling\": {\"seed\": 5}, \"repeat\": 2}\r\n";
    let csv = "\u{feff}prompt,sampling.seed,sampling.steps,size.frames,repeat\r\n\
               a cat,1,2,8,\r\n42,5,,,2\r\n";
    let toml = "\u{feff}[[clip]]\r\nprompt = \"a cat\"\r\nsampling = {seed = 1, steps = 2}\r\nsize.frames = 8\r\n\
                [[clip]]\r\nprompt = \"42\"\r\nsampling.seed = 5\r\nrepeat = 2\r\n";
    let wanted = [("a cat", 1, 2, 8), ("42", 5, 4, 16), ("42", 6, 4, 16)];
    for (name, text) in [("a.jsonl", jsonl), ("a.NDJSON", jsonl), ("a.csv", csv), ("a.toml", toml)]
    {
        let items = list(name, text).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(told(&items), wanted, "{name}");
        let numbers: Vec<usize> = items.iter().map(|item| item.number).collect();
        assert_eq!(numbers, [1, 2, 3], "{name}");
        assert_eq!(items[2].stem, "000003");
        let lines: Vec<usize> = items.iter().map(|item| item.line).collect();
        let wanted = if name == "a.csv" { [2, 3, 3] } else { [1, items[1].line, items[1].line] };
        assert_eq!(lines, wanted, "{name}");
    }
}

#[test]
fn cells_are_what_their_column_is() {
    let text = "prompt,prompt.negative,models.loras,sampling.sampler,output.loop,schedule.zero_snr,prompt.travel.4\n\
                \"a \"\"big\"\" cat,\n1990\",true,\"[{\"\"file\"\": \"\"a.pt\"\", \"\"scale\"\": 0.5}]\",euler-a,closed,FALSE,\n\
                3,,,,,,a bud\n";
    let items = list("a.csv", text).unwrap();
    let job = &items[0].job;
    assert_eq!(job.request.prompt.text, "a \"big\" cat,\n1990");
    assert_eq!(job.request.prompt.negative, "true");
    assert_eq!((job.models.loras[0].file.as_str(), job.models.loras[0].scale), ("a.pt", 0.5));
    assert_eq!(job.request.schedule.zero_snr, Some(false));
    assert_eq!(job.request.sampling.sampler.name(), "euler-a");
    assert_eq!((items[0].line, items[1].line), (2, 4));
    assert_eq!(items[1].job.request.prompt.travel.keys()[0].text, "a bud");
}

#[test]
fn a_matrix_is_multiplied_out_in_the_order_written() {
    let text = "[defaults]\nprompt = {negative = \"blur\"}\nsampling.seed = 3\n\n\
                [matrix]\nsize.frames = [8, 4]\nsampling.steps = [1, 2]\nsampling.cfg_scale = [1, 1.5]\n\n\
                [[clip]]\nprompt = \"a\"\nname = \"one\"\n[[clip]]\nprompt.text = \"b\"\n";
    let items = list("m.toml", text).unwrap();
    let wanted: Vec<_> = ["a", "b"]
        .into_iter()
        .flat_map(|prompt| {
            let frames = [8, 4].into_iter();
            let pairs = frames.flat_map(|frames| [1, 2].map(|steps| (steps, frames)));
            pairs.flat_map(move |(steps, frames)| {
                [1.0, 1.5].map(|scale| (prompt, steps, frames, scale))
            })
        })
        .collect();
    let found: Vec<_> = items
        .iter()
        .map(|item| {
            let request = &item.job.request;
            assert_eq!((request.prompt.negative.as_str(), item.seed()), ("blur", 3));
            let (prompt, sampling) = (request.prompt.text.as_str(), &request.sampling);
            (prompt, sampling.steps, request.frames(), sampling.cfg_scale)
        })
        .collect();
    assert_eq!(found, wanted);
    let names: Vec<_> = items.iter().map(|item| item.name.as_deref().unwrap_or("-")).collect();
    assert_eq!((names[0], names[7], names[8]), ("one-1", "one-8", "-"));
    assert_eq!((items[0].line, items[15].line), (10, 13));
    // Without clips the defaults are one.
    let only =
        list("m.toml", "[defaults]\nprompt = \"a\"\n[matrix]\n\"sampling.steps\" = [2, 1]\n");
    let steps: Vec<_> = only.unwrap().iter().map(|i| i.job.request.sampling.steps).collect();
    assert_eq!(steps, [2, 1]);
}

#[test]
fn a_missing_seed_follows_from_the_item_and_its_number() {
    let line = "{\"prompt\": \"a cat\"}\n";
    let seeds = |text: &str| -> Vec<u64> {
        list("a.jsonl", text).unwrap().iter().map(Item::seed).collect()
    };
    let once = seeds(&line.repeat(3));
    assert_eq!(once, seeds(&line.repeat(3)), "another folder, another time");
    assert!(once[0] != once[1] && once[1] != once[2], "{once:?}");
    // Spelled out or not, and whatever the other lines are.
    let other = "{\"prompt\": \"b\"}\n{\"schema\": \"animatelcm/v1\", \"prompt\": {\"text\": \"a cat\"}, \"sampling\": {\"seed\": -1}}\n";
    assert_eq!(seeds(other)[1], once[1]);
    let four = seeds("{\"prompt\": \"a cat\", \"repeat\": 4}");
    assert_eq!(four, [0, 1, 2, 3].map(|i| once[0] + i));
}

#[test]
fn files_beside_weights_are_looked_for_beside_the_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let text = "{\"prompt\": \"a\", \"source\": {\"video\": \"v.gif\", \"mask\": {\"file\": \"/m.png\"}}, \
                \"models\": {\"checkpoint\": \"w.pt\"}, \
                \"controls\": [{\"name\": \"a\", \"hint\": \"video\", \"model\": \"c.pt\"}, {\"name\": \"b\", \"hint\": \"h.png\", \"model\": \"c.pt\"}], \
                \"ip_adapters\": [{\"images\": [{\"file\": \"i.png\"}], \"model\": \"p.pt\"}]}";
    let items = list_in(folder.path(), "a.jsonl", text, "{number}").unwrap();
    let request = &items[0].job.request;
    let here = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    assert_eq!(request.source_video(), Some(here("v.gif").as_str()));
    assert_eq!(request.source.as_ref().unwrap().mask.as_ref().unwrap().file, "/m.png");
    assert_eq!(
        (request.controls[0].hint.as_str(), &request.controls[1].hint),
        ("video", &here("h.png"))
    );
    assert_eq!(request.ip_adapters[0].images[0].file, here("i.png"));
    assert_eq!(
        (request.controls[0].model.as_str(), items[0].job.models.checkpoint.as_deref()),
        ("c.pt", Some("w.pt"))
    );
}

#[test]
fn what_is_wrong_is_named_by_its_line() {
    let good = "{\"prompt\": \"a\"}\n";
    fails("a.jsonl", "", "a.jsonl: manifest: has no clips");
    fails("a.csv", "\n", "has no clips");
    fails("a.csv", "prompt\n", "has no clips");
    fails("a.toml", "", "has no clips");
    fails("a.toml", "[defaults]\nprompt = \"a\"\n", "has no clips");
    fails("a.txt", good, "none of the endings .jsonl .csv .toml");
    fails(
        "a.jsonl",
        &format!("{good}\n{{\"promt\": 1}}\n"),
        "a.jsonl: line 3: manifest: unknown field `promt`",
    );
    fails("a.jsonl", &format!("{good}[1]\n"), "line 2: manifest: is not a JSON object");
    fails("a.jsonl", &format!("{good}{{\n"), "line 2: manifest: is not JSON");
    let zero = "{\"size\": {\"frames\": 0}}\n";
    fails(
        "a.jsonl",
        &format!("{good}{zero}{good}{zero}"),
        "line 2 (and line 4): frames: must be at least 1",
    );
    fails("a.jsonl", &zero.repeat(14), "(and lines 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 3 more)");
    fails("a.jsonl", "{\"prompt\": \"a\", \"repeat\": 0}", "repeat: must be a whole number from 1");
    fails("a.jsonl", "{\"name\": \"a/b\"}", "name: `a/b`: '/' cannot be");
    fails(
        "a.jsonl",
        "{\"name\": \"x\"}\n{\"name\": \"y\"}\n{\"name\": \"x\"}\n",
        "line 3: name: `x` is that of line 1, too",
    );
    fails(
        "a.csv",
        "prompt,seed\na,1\n",
        "the column `seed` is no field; did you mean `sampling.seed`?",
    );
    fails(
        "a.csv",
        "prompt,size.hight\na,1\n",
        "line 1: manifest: the column `size.hight` is no field; did you mean `size.height`?",
    );
    fails("a.csv", "prompt,prompt\na,1\n", "is there twice");
    fails("a.csv", "prompt,size.frames\na,8\nb\n", "line 3: manifest: has 1 cells, the header 2");
    fails(
        "a.csv",
        "prompt,size.frames\na,many\n",
        "line 2: manifest: invalid type: string \"many\"",
    );
    fails(
        "a.toml",
        "[clip]\nprompt = \"a\"\n",
        "`clip` is not a list of tables; every clip begins with [[clip]]",
    );
    fails(
        "a.toml",
        "[[clips]]\nprompt = \"a\"\n",
        "`clips` is none of defaults, clip, matrix; did you mean `clip`?",
    );
    fails(
        "a.toml",
        "[[clip]]\nprompt = \"a\"\n\n[[clip]]\npromt = \"a\"\n",
        "line 4: manifest: unknown field `promt`",
    );
    fails("a.toml", "[[clip]]\nprompt = \n", "line 2: manifest: ");
    fails(
        "a.toml",
        "[matrix]\nsteps = [1]\n",
        "line 2: manifest: the matrix' `steps` is no field; did you mean `sampling.steps`?",
    );
    fails("a.toml", "[matrix]\nsampling.steps = 1\n", "is not a list");
    fails("a.toml", "[matrix]\nsampling.steps = []\n", "is an empty list");
    fails(
        "a.toml",
        "[[clip]]\nsampling.steps = 1\n[matrix]\nsampling.steps = [1, 2]\n",
        "line 1: manifest: the clip has `sampling.steps`",
    );
    fails("a.toml", "[[clip]]\nprompt = 1979-05-27\n", "is a time; quote it");
}

#[test]
fn there_is_a_most_of_clips() {
    let many = |count: usize| (0..count).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
    let text =
        format!("[matrix]\nsampling.seed = [{}]\nsize.frames = [{}]\n", many(400), many(300));
    fails("a.toml", &text, "the matrix makes 120000 clips, at most 100000");
    fails("a.jsonl", &format!("{{\"repeat\": {}}}", MOST_ITEMS + 1), "more than 100000 clips");
    fails("a.jsonl", "{\"repeat\": 18446744073709551615}\n{}", "more than 100000 clips");
    let mut count = 0;
    let error = batch::entries(Kind::Jsonl, &"{}\n".repeat(MOST_ITEMS + 1), &mut |_| {
        count += 1;
        Ok(())
    });
    assert!(error.is_err() && count == MOST_ITEMS);
}

#[test]
fn names_that_would_be_the_same_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let twice = "{\"prompt\": \"a\", \"sampling\": {\"seed\": 1}}\n".repeat(2);
    assert!(list_in(folder.path(), "a.jsonl", &twice, "{number}").is_ok());
    let error = list_in(folder.path(), "a.jsonl", &twice, "{slug}-{seed}").unwrap_err();
    assert!(error.to_string().contains("line 2: manifest: the clip is that of line 1"), "{error}");
    let other = "{\"prompt\": \"a\"}\n{\"prompt\": \"A\"}\n";
    let items = list_in(folder.path(), "a.jsonl", other, "{slug}").unwrap();
    assert_eq!((items[0].stem.as_str(), items[1].stem.as_str()), ("a", "a"));
    let named =
        list_in(folder.path(), "a.jsonl", "{\"name\": \"x\", \"repeat\": 2}", "{name}").unwrap();
    assert_eq!((named[0].stem.as_str(), named[1].stem.as_str()), ("x-1", "x-2"));
    let error = list_in(folder.path(), "a.jsonl", "{}\n", "{name}").unwrap_err();
    assert!(error.to_string().contains("line 1: name: is missing"), "{error}");
    let keys: Vec<_> = items.iter().map(|item| key(&item.job, Format::Gif).unwrap()).collect();
    assert_ne!(keys[0], keys[1]);
}

#[test]
fn reading_stops_when_it_is_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.csv");
    fs::write(&path, "prompt\na\n").unwrap();
    let (stop, names) = (Stop::default(), Names::new(true).unwrap());
    stop.request();
    let read = batch::list(&path, &Template::default(), (&names, FOLDERS), &stop);
    assert!(matches!(read, Err(Error::Cancelled)), "{read:?}");
}
