//! Clips: whole or in part, as a picture of the first frame or of all.

use std::fmt::Write as _;
use std::io::{Cursor, SeekFrom};
use std::path::{self, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::answer::{Answer, Problem};
use super::jobs::find;
use super::state::{App, Shared};
use crate::media::RgbImage;
use crate::media::read::{Media, Selection};
use crate::output::{ClipInfo, Format, Metadata, to_writer};
use crate::queue::{Output, Record, Status};
use crate::{Result, Stop};

/// Bytes that are read from the disk at once.
const BLOCK: usize = 64 << 10;

/// Width of a sheet of all frames, in frames.
const COLUMNS: usize = 8;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Options {
    variant: Option<String>,
}

/// `GET /v1/jobs/{id}/content`
pub(super) async fn get(
    State(app): State<Shared>,
    Path(id): Path<String>,
    query: Result<Query<Options>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Answer {
    let not_ready = |app: &App, _: &Record| {
        let message = "the clip is not complete yet";
        Problem::new(StatusCode::CONFLICT, "not_ready", message).retry_after(app.retry_after())
    };
    answer(&app, id, query, &headers, not_ready).await
}

/// `GET /v1/jobs/{id}/preview`
pub(super) async fn preview(State(app): State<Shared>, Path(id): Path<String>) -> Answer {
    let record = app.blocking(move |app| find(app, &id)).await?;
    let Some(jpeg) = app.previews.jpeg(&record.id) else {
        return Err(Problem::not_found("preview: none was made yet, or the job has ended"));
    };
    let headers =
        [(header::CONTENT_TYPE, "image/jpeg"), (header::CACHE_CONTROL, "private, no-store")];
    Ok((headers, jpeg.to_vec()).into_response())
}

/// The clip of a job, or what `not_ready` says while there is none.
pub(super) async fn answer(
    app: &Shared,
    id: String,
    query: Result<Query<Options>, axum::extract::rejection::QueryRejection>,
    headers: &HeaderMap,
    not_ready: impl Fn(&App, &Record) -> Problem + Send + 'static,
) -> Answer {
    let Query(options) = query.map_err(|error| Problem::invalid("query", error.body_text()))?;
    let (record, output, path) = app
        .blocking(move |app| {
            let record = find(app, &id)?;
            let gone = |message: &str| Problem::new(StatusCode::GONE, "expired", message);
            match (record.status, record.output.clone()) {
                (Status::Completed, Some(output)) => {
                    let path = app.clips.open(&output.sha256);
                    let path = path.map_err(|error| app.problem(&error))?;
                    let path = path.ok_or_else(|| gone("the clip is no longer there"))?;
                    Ok((record, output, path))
                }
                (Status::Expired, _) => Err(gone("the clip is no longer kept")),
                (Status::Queued | Status::Running, _) => Err(not_ready(app, &record)),
                _ => Err(Problem::not_found("clip: the job has none")),
            }
        })
        .await?;
    match options.variant.as_deref() {
        None | Some("video") => {
            let (kind, ending) = kind(&output.format);
            let name = format!("{}.{ending}", record.id);
            file(path, output.bytes, &output.sha256, (kind, &name), headers).await
        }
        Some(variant @ ("thumbnail" | "spritesheet")) => {
            let tag = format!("{}-{variant}", output.sha256);
            if is_known(headers, &tag) {
                return Ok(not_modified(&tag));
            }
            let is_sheet = variant == "spritesheet";
            let (bytes, kind) =
                app.blocking(move |app| picture(app, &path, &output, is_sheet)).await?;
            let name = format!("{}-{variant}.{}", record.id, &kind["image/".len()..]);
            let mut answer = bytes.into_response();
            describe(answer.headers_mut(), &tag, (kind, &name));
            Ok(answer)
        }
        Some(_) => {
            let message = "variant is `video`, `thumbnail` or `spritesheet`";
            Err(Problem::invalid("variant", message))
        }
    }
}

/// Media type and ending of a format.
fn kind(format: &str) -> (&'static str, &'static str) {
    match format {
        "mp4" => ("video/mp4", "mp4"),
        "gif" => ("image/gif", "gif"),
        "webp" => ("image/webp", "webp"),
        "apng" | "png" => ("image/png", "png"),
        _ => ("application/octet-stream", "y4m"),
    }
}

fn describe(headers: &mut HeaderMap, tag: &str, (kind, name): (&'static str, &str)) {
    let texts = [
        (header::ETAG, format!("\"{tag}\"")),
        (header::CONTENT_DISPOSITION, format!("inline; filename=\"{name}\"")),
        // A browser asks each time, since the clip may be deleted; the answer has no body then.
        (header::CACHE_CONTROL, "private, no-cache".to_owned()),
    ];
    for (header, text) in texts {
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(header, value);
        }
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
}

/// Whether a client has this already.
fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let known = headers.get(header::IF_NONE_MATCH).and_then(|known| known.to_str().ok());
    known.is_some_and(|known| {
        let mut tags = known.split(',').map(str::trim);
        tags.any(|known| known == "*" || known.trim_start_matches("W/").trim_matches('"') == tag)
    })
}

fn not_modified(tag: &str) -> Response {
    let mut answer = StatusCode::NOT_MODIFIED.into_response();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{tag}\"")) {
        answer.headers_mut().insert(header::ETAG, tag);
    }
    answer
}

/// What of a file a `Range` asks for.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// All of it: there is no range, or one that is not understood.
    All,
    /// From this byte to that one.
    Bytes(u64, u64),
    /// Nothing that is there.
    Beyond,
}

fn part(range: Option<&str>, length: u64) -> Part {
    let Some(range) = range.and_then(|range| range.strip_prefix("bytes=")) else {
        return Part::All;
    };
    // Several ranges may be answered by all of it.
    let Some((from, to)) = range.split_once('-').filter(|_| !range.contains(',')) else {
        return Part::All;
    };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let (from, to) = match (from.trim().is_empty(), number(from), number(to)) {
        // The last so many bytes.
        (true, _, Some(count)) => (length.saturating_sub(count), length.saturating_sub(1)),
        (false, Some(from), Some(last)) if last < from => return Part::All,
        (false, Some(from), Some(last)) => (from, last.min(length.saturating_sub(1))),
        (false, Some(from), None) if to.trim().is_empty() => (from, length.saturating_sub(1)),
        _ => return Part::All,
    };
    if from >= length { Part::Beyond } else { Part::Bytes(from, to) }
}

/// A file, or the part of it that is asked for.
async fn file(
    path: PathBuf,
    length: u64,
    tag: &str,
    named: (&'static str, &str),
    headers: &HeaderMap,
) -> Answer {
    if is_known(headers, tag) {
        return Ok(not_modified(tag));
    }
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let is_same = text(header::IF_RANGE).is_none_or(|known| known.trim_matches('"') == tag);
    let part = part(text(header::RANGE).filter(|_| is_same), length);
    let (status, from, count) = match part {
        Part::All => (StatusCode::OK, 0, length),
        Part::Bytes(from, to) => (StatusCode::PARTIAL_CONTENT, from, to - from + 1),
        Part::Beyond => (StatusCode::RANGE_NOT_SATISFIABLE, 0, 0),
    };
    let mut range = String::new();
    match part {
        Part::All => {}
        Part::Bytes(from, to) => {
            let _ = write!(range, "bytes {from}-{to}/{length}");
        }
        Part::Beyond => {
            let _ = write!(range, "bytes */{length}");
        }
    }
    let unreadable = |_| Problem::new(StatusCode::GONE, "expired", "the clip is no longer there");
    let body = if count == 0 {
        Body::empty()
    } else {
        let mut file = tokio::fs::File::open(path).await.map_err(unreadable)?;
        file.seek(SeekFrom::Start(from)).await.map_err(unreadable)?;
        Body::from_stream(stream::try_unfold((file, count), |(mut file, left)| async move {
            if left == 0 {
                return Ok::<_, std::io::Error>(None);
            }
            let mut block = vec![0; BLOCK.min(left as usize)];
            let count = file.read(&mut block).await?;
            if count == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            block.truncate(count);
            Ok(Some((block, (file, left - count as u64))))
        }))
    };
    let mut answer = (status, body).into_response();
    let headers = answer.headers_mut();
    describe(headers, tag, named);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(count));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Ok(range) = HeaderValue::from_str(&range)
        && status != StatusCode::OK
    {
        headers.insert(header::CONTENT_RANGE, range);
    }
    Ok(answer)
}

/// The first frame, or a sheet of all, with its media type.
fn picture(
    app: &App,
    path: &path::Path,
    output: &Output,
    is_sheet: bool,
) -> Answer<(Vec<u8>, &'static str)> {
    let made = || -> Result<(Vec<u8>, &'static str)> {
        let stop = Stop::default();
        let count = (!is_sheet).then_some(1);
        let media = Media::read("clip", path, |_| true, &stop)?;
        let frames = media.frames("clip", Selection { count, ..Selection::default() }, &stop)?;
        let image = sheet(&frames.images);
        let (format, kind) = if Format::Webp.is_available() {
            (Format::Webp, "image/webp")
        } else {
            (Format::Apng, "image/png")
        };
        let (width, height) = image.dimensions();
        let info = ClipInfo { width, height, frames: 1, fps: output.fps };
        let file = Memory::default();
        let mut sink = to_writer(format, file.clone(), &info, &Metadata::default(), &stop)?;
        sink.frame(&image)?;
        sink.finish()?;
        Ok((file.take(), kind))
    };
    made().map_err(|error| app.problem(&error))
}

/// Frames in rows.
fn sheet(frames: &[RgbImage]) -> RgbImage {
    let (width, height) = frames.first().map_or((1, 1), RgbImage::dimensions);
    let columns = frames.len().clamp(1, COLUMNS);
    let rows = frames.len().div_ceil(columns).max(1);
    let mut sheet = RgbImage::new(width * columns as u32, height * rows as u32);
    for (number, frame) in frames.iter().enumerate() {
        let x = (number % columns) as i64 * i64::from(width);
        let y = (number / columns) as i64 * i64::from(height);
        image::imageops::replace(&mut sheet, frame, x, y);
    }
    sheet
}

/// A file in memory that can be read after its writer took it.
#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<Cursor<Vec<u8>>>>);

impl Memory {
    fn take(&self) -> Vec<u8> {
        std::mem::take(self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut())
    }
}

impl std::io::Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        std::io::Write::write(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl std::io::Seek for Memory {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        std::io::Seek::seek(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_rfc_9110() {
        let of = |range| part(Some(range), 10);
        assert_eq!(part(None, 10), Part::All);
        assert_eq!(of("bytes=0-3"), Part::Bytes(0, 3));
        assert_eq!(of("bytes=4-"), Part::Bytes(4, 9));
        assert_eq!(of("bytes=-3"), Part::Bytes(7, 9));
        assert_eq!(of("bytes=-30"), Part::Bytes(0, 9));
        assert_eq!(of("bytes=8-99"), Part::Bytes(8, 9));
        assert_eq!(of("bytes=10-"), Part::Beyond);
        assert_eq!(of("bytes=-0"), Part::Beyond);
        for all in ["bytes=0-1,4-5", "bytes=5-2", "bytes=", "bytes=-", "bytes=a-b", "lines=0-1"] {
            assert_eq!(of(all), Part::All, "{all}");
        }
        assert_eq!(part(Some("bytes=0-"), 0), Part::Beyond);
    }

    #[test]
    fn all_frames_lie_in_rows() {
        let frame = |value: u8| RgbImage::from_pixel(3, 2, image::Rgb([value; 3]));
        let frames: Vec<_> = (1..=10).map(frame).collect();
        let sheet = sheet(&frames);
        assert_eq!(sheet.dimensions(), (24, 4));
        assert_eq!(sheet.get_pixel(23, 0).0[0], 8);
        assert_eq!(sheet.get_pixel(3, 2).0[0], 10);
        assert_eq!(sheet.get_pixel(6, 2).0[0], 0);
    }
}
