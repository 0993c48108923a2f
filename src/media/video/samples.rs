//! Sample tables of an MP4 video track: offsets, presentation times, and the edit list.

use super::boxes::{boxes, child, descendant, i32_at, table, u32_at, u64_at};
use crate::media::fault::Fault;

/// Maximum number of frames a video may declare: nine hours.
const MOST_SAMPLES: usize = 1 << 20;

/// Location of a frame's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) offset: u64,
    pub(super) size: u32,
    /// Presentation time, in the track's time units.
    time: i64,
}

/// All frames of a track in decoding order, and the frames to show, as ranks in presentation order.
pub(super) struct Samples {
    pub(super) all: Vec<Sample>,
    pub(super) shown: Vec<usize>,
    /// Presentation times, sorted, in the track's time units.
    times: Vec<i64>,
    /// The track's time units per second, if it says so.
    scale: Option<u32>,
}

impl Samples {
    /// Reads the samples of the track `trak` of the file `bytes`.
    pub(super) fn read(bytes: &[u8], moov: &[u8], trak: &[u8]) -> Result<Self, Fault> {
        let mut reader = Reader { bytes, all: vec![] };
        let table = descendant(trak, &[b"mdia", b"minf", b"stbl"]).ok_or("has no sample table")?;
        reader.table(table)?;
        let in_table = reader.all.len();
        reader.fragments(moov, track_id(trak).unwrap_or(0))?;
        let mut all = reader.all;
        let is_fragmented = all.len() > in_table;
        all.retain(|sample| sample.size > 0);
        let mut times: Vec<i64> = all.iter().map(|sample| sample.time).collect();
        times.sort_unstable();
        // As in FFmpeg, the edit list of a fragmented file is ignored.
        let edits = if is_fragmented { None } else { shown(&times, moov, trak)? };
        let scale = descendant(trak, &[b"mdia", b"mdhd"]).and_then(timescale);
        Ok(Self { shown: edits.unwrap_or_else(|| (0..all.len()).collect()), all, times, scale })
    }

    /// Seconds for which each of [`shown`](Self::shown) is shown: until the frame after it, and the last as long as the
    /// one before it. `None` if there are no units of time, or a single frame.
    pub(super) fn durations(&self) -> Option<Vec<f64>> {
        let scale = f64::from(self.scale?);
        let gaps = self.times.windows(2).map(|pair| pair[1].saturating_sub(pair[0]) as f64 / scale);
        let mut gaps: Vec<f64> = gaps.collect();
        gaps.push(*gaps.last()?);
        self.shown.iter().map(|rank| gaps.get(*rank).copied()).collect()
    }
}

/// The id of a track.
pub(super) fn track_id(trak: &[u8]) -> Option<u32> {
    let header = child(trak, b"tkhd")?;
    u32_at(header, if *header.first()? == 1 { 20 } else { 12 })
}

/// Time units per second of a movie or track.
fn timescale(header: &[u8]) -> Option<u32> {
    u32_at(header, if *header.first()? == 1 { 20 } else { 12 }).filter(|scale| *scale > 0)
}

/// The ranks of the frames shown by the edit list, in its order; `None` if there is no edit list or it shows none.
fn shown(times: &[i64], moov: &[u8], trak: &[u8]) -> Result<Option<Vec<usize>>, Fault> {
    let Some(list) = descendant(trak, &[b"edts", b"elst"]) else { return Ok(None) };
    let scales = child(moov, b"mvhd")
        .and_then(timescale)
        .zip(descendant(trak, &[b"mdia", b"mdhd"]).and_then(timescale));
    let (movie, media) = scales.ok_or("has no units of time")?;
    let count = u32_at(list, 4).unwrap_or(0) as usize;
    let entries = list.get(8..).unwrap_or_default();
    let is_long = list.first() == Some(&1);
    let mut shown = Vec::new();
    for entry in entries.chunks_exact(if is_long { 20 } else { 12 }).take(count) {
        let found = if is_long {
            u64_at(entry, 0).zip(u64_at(entry, 8).map(u64::cast_signed))
        } else {
            u32_at(entry, 0).map(u64::from).zip(i32_at(entry, 4).map(i64::from))
        };
        let Some((duration, start)) = found else { continue };
        // An empty edit shows nothing.
        if start < 0 {
            continue;
        }
        let length =
            (u128::from(duration) * u128::from(media) + u128::from(movie / 2)) / u128::from(movie);
        let end = i64::try_from(length).ok().and_then(|length| start.checked_add(length));
        let first = times.partition_point(|time| *time < start);
        let last = match end {
            Some(end) if duration > 0 => times.partition_point(|time| *time < end),
            _ => times.len(),
        };
        if shown.len() + last.saturating_sub(first) > MOST_SAMPLES {
            return Err("has an edit list without end".into());
        }
        shown.extend(first..last);
    }
    Ok((!shown.is_empty()).then_some(shown))
}

/// Collects samples, with limits.
struct Reader<'a> {
    bytes: &'a [u8],
    all: Vec<Sample>,
}

impl Reader<'_> {
    /// Rejects counts that the file cannot hold, before allocating anything.
    fn check(&self, count: usize, size_each: u32) -> Result<(), Fault> {
        let bytes = (count as u64).saturating_mul(u64::from(size_each));
        if count > MOST_SAMPLES - self.all.len() || bytes > self.bytes.len() as u64 {
            return Err(format!("declares {count} frames more than it can hold").into());
        }
        Ok(())
    }

    /// The sizes of a track's samples.
    fn sizes(&self, table: &[u8]) -> Result<Vec<u32>, Fault> {
        let cut_off = "its table of frame sizes is cut off";
        if let Some(body) = child(table, b"stsz") {
            let (each, count) = u32_at(body, 4).zip(u32_at(body, 8)).ok_or(cut_off)?;
            let count = count as usize;
            self.check(count, each)?;
            if each > 0 {
                return Ok(vec![each; count]);
            }
            let sizes: Vec<u32> =
                body[12..].chunks_exact(4).take(count).filter_map(|size| u32_at(size, 0)).collect();
            return if sizes.len() == count { Ok(sizes) } else { Err(cut_off.into()) };
        }
        let body = child(table, b"stz2").ok_or("has no table of frame sizes")?;
        let (bits, count) = u32_at(body, 4).zip(u32_at(body, 8)).ok_or(cut_off)?;
        self.check(count as usize, 0)?;
        let sizes = body[12..].iter().flat_map(|byte| match bits & 0xff {
            4 => vec![u32::from(byte >> 4), u32::from(byte & 15)],
            _ => vec![u32::from(*byte)],
        });
        let sizes: Vec<u32> = match bits & 0xff {
            4 | 8 => sizes.take(count as usize).collect(),
            16 => {
                let pairs = body[12..].chunks_exact(2).take(count as usize);
                pairs.map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).collect()
            }
            _ => vec![],
        };
        if sizes.len() == count as usize { Ok(sizes) } else { Err(cut_off.into()) }
    }

    /// Reads the samples of a track's sample table.
    fn table(&mut self, stbl: &[u8]) -> Result<(), Fault> {
        let sizes = self.sizes(stbl)?;
        if sizes.is_empty() {
            return Ok(());
        }
        let mut offsets: Vec<u64> = match (child(stbl, b"stco"), child(stbl, b"co64")) {
            (Some(body), _) => table::<1>(body).map(|[offset]| u64::from(offset)).collect(),
            (None, Some(body)) => {
                let pair = |[high, low]: [u32; 2]| u64::from(high) << 32 | u64::from(low);
                table::<2>(body).map(pair).collect()
            }
            (None, None) => vec![],
        };
        let runs: Vec<[u32; 3]> = child(stbl, b"stsc").map_or(vec![], |body| table(body).collect());
        let missing = |name: &str| Fault::from(format!("its table `{name}` lacks frames"));
        let mut run = runs.iter().peekable();
        let mut each = 0;
        let mut left = sizes.iter();
        for (chunk, offset) in offsets.iter_mut().enumerate() {
            while let Some([_, count, _]) = run.next_if(|run| run[0] as usize <= chunk + 1) {
                each = *count;
            }
            for size in left.by_ref().take(each as usize) {
                self.all.push(Sample { offset: *offset, size: *size, time: 0 });
                *offset = offset.saturating_add(u64::from(*size));
            }
        }
        if left.next().is_some() {
            return Err(missing(if runs.is_empty() { "stsc" } else { "stco" }));
        }
        let durations: Vec<[u32; 2]> =
            child(stbl, b"stts").map_or(vec![], |body| table(body).collect());
        let last = durations.last().ok_or_else(|| missing("stts"))?[1];
        let repeat = |[count, value]: [u32; 2]| std::iter::repeat_n(value, count as usize);
        let durations = durations.into_iter().flat_map(repeat).chain(std::iter::repeat(last));
        let offsets: Vec<[u32; 2]> =
            child(stbl, b"ctts").map_or(vec![], |body| table(body).collect());
        let offsets = offsets.into_iter().flat_map(repeat).chain(std::iter::repeat(0));
        let mut now = 0i64;
        for ((sample, duration), offset) in self.all.iter_mut().zip(durations).zip(offsets) {
            sample.time = now.saturating_add(i64::from(offset.cast_signed()));
            now = now.saturating_add(i64::from(duration));
        }
        Ok(())
    }

    /// Reads a track's samples in the file's fragments.
    fn fragments(&mut self, moov: &[u8], track: u32) -> Result<(), Fault> {
        let defaults = child(moov, b"mvex").and_then(|mvex| {
            let is_ours = |body: &&[u8]| u32_at(body, 4) == Some(track);
            boxes(mvex).filter(|part| part.kind == b"trex").map(|part| part.body).find(is_ours)
        });
        let default = |at: usize| defaults.and_then(|trex| u32_at(trex, at)).unwrap_or(0);
        let (duration, size) = (default(12), default(16));
        let mut now = 0i64;
        for moof in boxes(self.bytes).filter(|part| part.kind == b"moof") {
            for traf in boxes(moof.body).filter(|part| part.kind == b"traf") {
                let header = child(traf.body, b"tfhd").unwrap_or_default();
                if u32_at(header, 4) != Some(track) {
                    continue;
                }
                let base = moof.start as u64;
                self.fragment(traf.body, header, Defaults { base, duration, size }, &mut now)
                    .ok_or("a fragment is broken")??;
            }
        }
        Ok(())
    }

    /// Reads the samples of one fragment; `None` if it is truncated.
    fn fragment(
        &mut self,
        traf: &[u8],
        header: &[u8],
        mut defaults: Defaults,
        now: &mut i64,
    ) -> Option<Result<(), Fault>> {
        let flags = u32_at(header, 0)?;
        let mut at = 8;
        if flags & 0x1 != 0 {
            defaults.base = u64_at(header, at)?;
            at += 8;
        }
        at += if flags & 0x2 != 0 { 4 } else { 0 };
        for (flag, value) in [(0x8, &mut defaults.duration), (0x10, &mut defaults.size)] {
            if flags & flag != 0 {
                *value = u32_at(header, at)?;
                at += 4;
            }
        }
        if let Some(time) = child(traf, b"tfdt") {
            let time = if *time.first()? == 1 { u64_at(time, 4)? } else { u32_at(time, 4)?.into() };
            *now = i64::try_from(time).ok()?;
        }
        let mut end = defaults.base;
        for run in boxes(traf).filter(|part| part.kind == b"trun") {
            let run = run.body;
            let (flags, count) = (u32_at(run, 0)?, u32_at(run, 4)? as usize);
            let mut at = 8;
            if flags & 0x1 != 0 {
                end = defaults.base.checked_add_signed(i32_at(run, at)?.into())?;
                at += 4;
            }
            at += if flags & 0x4 != 0 { 4 } else { 0 };
            let fields = (flags & 0xf00).count_ones() as usize;
            let size_each = if flags & 0x200 == 0 { defaults.size } else { 0 };
            if let Err(fault) = self.check(count, size_each) {
                return Some(Err(fault));
            }
            // Samples with neither a size nor entries are empty.
            if fields == 0 && size_each == 0 {
                continue;
            }
            for _ in 0..count {
                let mut field = |flag: u32| {
                    let value = if flags & flag != 0 { Some(u32_at(run, at)?) } else { None };
                    at += if value.is_some() { 4 } else { 0 };
                    Some(value)
                };
                let duration = field(0x100)?.unwrap_or(defaults.duration);
                let size = field(0x200)?.unwrap_or(defaults.size);
                field(0x400)?;
                let shift = field(0x800)?.unwrap_or(0).cast_signed();
                let time = now.saturating_add(shift.into());
                self.all.push(Sample { offset: end, size, time });
                end = end.saturating_add(size.into());
                *now = now.saturating_add(duration.into());
            }
        }
        Some(Ok(()))
    }
}

/// Default values of a fragment's samples.
struct Defaults {
    /// Base of the data offsets.
    base: u64,
    duration: u32,
    size: u32,
}
