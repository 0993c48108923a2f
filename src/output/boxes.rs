//! The MP4 container: a movie with one H.264 track of equally long frames.
//!
//! Boxes are those of ISO/IEC 14496-12, `avc1` and `avcC` of 14496-15, `ilst` and `keys` of Apple's QuickTime
//! File Format specification.

use super::metadata::{MP4_PARAMETERS, MP4_REQUEST, Metadata};

/// A movie, apart from its samples.
#[derive(Clone, Debug)]
pub(super) struct Movie {
    /// Size of the coded image, even on both sides.
    pub(super) coded: (u32, u32),
    /// Size of the image to show: its upper left part.
    pub(super) shown: (u32, u32),
    /// Frames a second, as a fraction.
    pub(super) rate: (u32, u32),
    /// Sequence parameter set.
    pub(super) sps: Vec<u8>,
    /// Image parameter set.
    pub(super) pps: Vec<u8>,
    /// Bytes of each frame.
    pub(super) sizes: Vec<u32>,
    /// Indices of the key frames, from 0.
    pub(super) keys: Vec<u32>,
    /// Offset in the file of the first frame; the others follow.
    pub(super) offset: u64,
}

/// A box: size, name and contents. Contents beyond 4 GiB never come here.
fn plain(name: [u8; 4], contents: &[&[u8]]) -> Vec<u8> {
    let size = 8 + contents.iter().map(|part| part.len()).sum::<usize>();
    [&(size as u32).to_be_bytes()[..], &name, &contents.concat()].concat()
}

/// A box with version 0 and flags.
fn full(name: [u8; 4], flags: u32, contents: &[&[u8]]) -> Vec<u8> {
    plain(name, &[&flags.to_be_bytes(), &contents.concat()])
}

fn u16s(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_be_bytes()).collect()
}

fn u32s(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_be_bytes()).collect()
}

/// The box that comes first.
pub(super) fn file_type() -> Vec<u8> {
    plain(*b"ftyp", &[b"isom", &u32s(&[512]), b"isomiso2avc1mp41"])
}

/// A box of no meaning, `size` bytes in all, of which there must be at least 8.
pub(super) fn free(size: usize) -> Vec<u8> {
    plain(*b"free", &[&vec![0; size.saturating_sub(8)]])
}

/// The 16-byte header of a media data box with a 64-bit size.
pub(super) fn media_header(payload: u64) -> Vec<u8> {
    [&u32s(&[1])[..], b"mdat", &(16 + payload).to_be_bytes()].concat()
}

const MATRIX: [u32; 9] = [0x1_0000, 0, 0, 0, 0x1_0000, 0, 0, 0, 0x4000_0000];

impl Movie {
    /// Units of time a second, and a frame's length in them.
    ///
    /// Some players count in whole units, so there are at least 10 000 a second.
    fn time(&self) -> (u32, u32) {
        let (num, den) = self.rate;
        let factor = 10_000_u32.div_ceil(num).next_power_of_two();
        (num * factor, den * factor)
    }

    /// The length of the movie, if it can be written.
    pub(super) fn duration(&self) -> Option<u32> {
        u32::try_from(self.sizes.len() as u64 * u64::from(self.time().1)).ok()
    }

    /// The box that describes everything.
    pub(super) fn movie_box(&self, metadata: &Metadata) -> Vec<u8> {
        let (scale, _) = self.time();
        let duration = self.duration().unwrap_or(u32::MAX);
        let header = full(
            *b"mvhd",
            0,
            &[
                &u32s(&[0, 0, scale, duration, 0x1_0000]), // times of making, rate 1
                &u16s(&[0x100, 0, 0, 0, 0, 0]),            // volume 1
                &u32s(&MATRIX),
                &u32s(&[0, 0, 0, 0, 0, 0, 2]), // the next track's number
            ],
        );
        let (keys, comments) = if metadata.is_empty() {
            (vec![], vec![])
        } else {
            (keys(metadata), comments(metadata))
        };
        plain(*b"moov", &[&header, &self.track(scale, duration), &keys, &comments])
    }

    fn track(&self, scale: u32, duration: u32) -> Vec<u8> {
        let (width, height) = self.coded;
        let header = full(
            *b"tkhd",
            3, // enabled, in the movie
            &[
                &u32s(&[0, 0, 1, 0, duration, 0, 0]),
                &u16s(&[0, 0, 0, 0]),
                &u32s(&MATRIX),
                &u32s(&[width << 16, height << 16]),
            ],
        );
        let media_header = full(
            *b"mdhd",
            0,
            &[&u32s(&[0, 0, scale, duration]), &u16s(&[0x55c4, 0])], // language undetermined
        );
        let handler = full(*b"hdlr", 0, &[&u32s(&[0]), b"vide", &[0; 12], b"VideoHandler\0"]);
        let reference = full(*b"dref", 0, &[&u32s(&[1]), &full(*b"url ", 1, &[])]); // this file
        let information = plain(
            *b"minf",
            &[
                &full(*b"vmhd", 1, &[&[0; 8]]),
                &plain(*b"dinf", &[&reference]),
                &self.sample_table(),
            ],
        );
        let media = plain(*b"mdia", &[&media_header, &handler, &information]);
        plain(*b"trak", &[&header, &media])
    }

    fn sample_table(&self) -> Vec<u8> {
        let count = self.sizes.len() as u32;
        let key_numbers: Vec<u32> = self.keys.iter().map(|key| key + 1).collect();
        plain(
            *b"stbl",
            &[
                &full(*b"stsd", 0, &[&u32s(&[1]), &self.sample_entry()]),
                &full(*b"stts", 0, &[&u32s(&[1, count, self.time().1])]),
                &full(*b"stss", 0, &[&u32s(&[key_numbers.len() as u32]), &u32s(&key_numbers)]),
                &full(*b"stsc", 0, &[&u32s(&[1, 1, count, 1])]), // all in one chunk
                &full(*b"stsz", 0, &[&u32s(&[0, count]), &u32s(&self.sizes)]),
                &full(*b"co64", 0, &[&u32s(&[1]), &self.offset.to_be_bytes()]),
            ],
        )
    }

    fn sample_entry(&self) -> Vec<u8> {
        let (width, height) = self.coded;
        let profile = self.sps.get(1..4).unwrap_or(&[66, 0, 30]);
        let configuration = plain(
            *b"avcC",
            &[
                &[1],
                profile,
                &[0xff, 0xe1], // lengths of 4 bytes; one sequence parameter set
                &u16s(&[self.sps.len() as u16]),
                &self.sps,
                &[1],
                &u16s(&[self.pps.len() as u16]),
                &self.pps,
            ],
        );
        // BT.709 primaries, transfer and matrix; limited range.
        let colour = plain(*b"colr", &[b"nclx", &u16s(&[1, 1, 1]), &[0]]);
        let aspect = plain(*b"pasp", &[&u32s(&[1, 1])]);
        plain(
            *b"avc1",
            &[
                &[0; 6],
                &u16s(&[1]),
                &[0; 16],
                &u16s(&[width as u16, height as u16]),
                &u32s(&[0x48_0000, 0x48_0000, 0]), // 72 dots an inch
                &u16s(&[1]),
                &[0; 32], // no compressor name
                &u16s(&[0x18, 0xffff]),
                &configuration,
                &colour,
                &aspect,
                &self.clean_aperture(),
            ],
        )
    }

    /// The upper left part to show, where that is not all.
    ///
    /// Its centre is given as a distance from the coded image's centre.
    fn clean_aperture(&self) -> Vec<u8> {
        if self.coded == self.shown {
            return Vec::new();
        }
        let offset = |coded: u32, shown: u32| (i64::from(shown) - i64::from(coded)) as u32;
        let ((coded_width, coded_height), (width, height)) = (self.coded, self.shown);
        let horizontal = offset(coded_width, width);
        let vertical = offset(coded_height, height);
        plain(*b"clap", &[&u32s(&[width, 1, height, 1, horizontal, 2, vertical, 2])])
    }
}

/// Key and value pairs for programs.
///
/// This box is QuickTime's, without version and flags: with them exiftool finds no keys, while ffprobe and MediaInfo
/// read both forms.
fn keys(metadata: &Metadata) -> Vec<u8> {
    let pairs: Vec<(&str, &str)> =
        [(MP4_REQUEST, &metadata.request_json), (MP4_PARAMETERS, &metadata.parameters)]
            .into_iter()
            .filter(|(_, text)| !text.is_empty())
            .map(|(key, text)| (key, text.as_str()))
            .collect();
    let names: Vec<u8> =
        pairs.iter().flat_map(|(key, _)| plain(*b"mdta", &[key.as_bytes()])).collect();
    let items: Vec<u8> = (1_u32..)
        .zip(&pairs)
        .flat_map(|(number, (_, text))| plain(number.to_be_bytes(), &[&text_data(text)]))
        .collect();
    plain(
        *b"meta",
        &[
            &handler(*b"mdta", [0; 4]),
            &full(*b"keys", 0, &[&u32s(&[pairs.len() as u32]), &names]),
            &plain(*b"ilst", &[&items]),
        ],
    )
}

/// A comment for people, where players show it: the parameters, and the prompt, their first line.
fn comments(metadata: &Metadata) -> Vec<u8> {
    if metadata.parameters.is_empty() {
        return Vec::new();
    }
    let prompt = metadata.parameters.lines().next().unwrap_or_default();
    let items = [
        plain(*b"\xa9cmt", &[&text_data(&metadata.parameters)]),
        plain(*b"desc", &[&text_data(prompt)]),
    ];
    let meta =
        full(*b"meta", 0, &[&handler(*b"mdir", *b"appl"), &plain(*b"ilst", &[&items.concat()])]);
    plain(*b"udta", &[&meta])
}

/// The box that says how a `meta` box is to be read.
fn handler(kind: [u8; 4], vendor: [u8; 4]) -> Vec<u8> {
    full(*b"hdlr", 0, &[&u32s(&[0]), &kind, &vendor, &[0; 8], b"\0"])
}

/// UTF-8, in no particular language.
fn text_data(text: &str) -> Vec<u8> {
    plain(*b"data", &[&u32s(&[1, 0]), text.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_exact_and_fine() {
        for rate in [(8, 1), (30_000, 1001), (1, 100), (25, 2)] {
            let movie = Movie {
                coded: (16, 16),
                shown: (16, 16),
                rate,
                sps: vec![],
                pps: vec![],
                sizes: vec![1; 16],
                keys: vec![0],
                offset: 0,
            };
            let (scale, length) = movie.time();
            assert_eq!(scale * rate.1, length * rate.0, "{rate:?}");
            assert!(scale >= 10_000);
            assert_eq!(movie.duration(), Some(16 * length));
        }
    }
}
