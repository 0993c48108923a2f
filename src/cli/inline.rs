//! Images in a terminal, as bytes: half blocks, and the protocols of kitty, iTerm2 and DEC's sixel.

use base64::prelude::{BASE64_STANDARD, Engine};

use crate::media::RgbImage;

/// Bytes of base64 in one escape sequence of kitty's protocol.
const CHUNK: usize = 4096;

/// An image in half blocks of 24-bit colours: two pixels a character, one above the other.
pub(super) fn half_blocks(image: &RgbImage) -> String {
    let (width, height) = image.dimensions();
    let mut text = String::new();
    for y in (0..height).step_by(2) {
        let (mut over, mut under) = (None, None);
        for x in 0..width {
            let upper = image.get_pixel(x, y).0;
            if over.replace(upper) != Some(upper) {
                let [r, g, b] = upper;
                text.push_str(&format!("\x1b[38;2;{r};{g};{b}m"));
            }
            // An odd last row stands on the terminal's own background.
            let lower = image.get_pixel_checked(x, y + 1).map(|pixel| pixel.0);
            if under.replace(lower) != Some(lower) {
                match lower {
                    Some([r, g, b]) => text.push_str(&format!("\x1b[48;2;{r};{g};{b}m")),
                    None => text.push_str("\x1b[49m"),
                }
            }
            text.push('▀');
        }
        text.push_str("\x1b[0m\n");
    }
    text
}

/// A looping animation in kitty's graphics protocol, `rows` text lines high. Frames follow each other after `gap`
/// milliseconds. <https://sw.kovidgoyal.net/kitty/graphics-protocol/>
pub(super) fn kitty(frames: &[RgbImage], gap: u32, rows: usize, id: u32) -> String {
    let mut text = String::new();
    for (i, frame) in frames.iter().enumerate() {
        let (width, height) = frame.dimensions();
        let data = BASE64_STANDARD.encode(frame.as_raw());
        let keys = format!("f=24,s={width},v={height},i={id},q=2");
        // What follows the first chunk of a frame has to say that it belongs to one.
        let (first, later) = match i {
            0 => (format!("a=T,{keys},r={rows}"), ""),
            _ => (format!("a=f,{keys},z={gap}"), "a=f,"),
        };
        let mut rest = data.as_str();
        let mut keys = first;
        loop {
            let (chunk, after) = rest.split_at(rest.len().min(CHUNK));
            let more = u8::from(!after.is_empty());
            text.push_str(&format!("\x1b_G{keys},m={more};{chunk}\x1b\\"));
            if after.is_empty() {
                break;
            }
            rest = after;
            keys = format!("{later}q=2");
        }
    }
    if frames.len() > 1 {
        text.push_str(&format!("\x1b_Ga=a,i={id},r=1,z={gap},q=2\x1b\\"));
        text.push_str(&format!("\x1b_Ga=a,i={id},s=3,v=1,q=2\x1b\\"));
    }
    text.push('\n');
    text
}

/// An image file, `rows` text lines high, in iTerm2's protocol. <https://iterm2.com/documentation-images.html>
pub(super) fn iterm2(file: &[u8], rows: usize) -> String {
    let (size, data) = (file.len(), BASE64_STANDARD.encode(file));
    format!("\x1b]1337;File=inline=1;size={size};height={rows};preserveAspectRatio=1:{data}\x07\n")
}

/// Levels of each channel in a sixel image.
const LEVELS: u32 = 6;

/// An image in sixels, of 216 colours. <https://vt100.net/docs/vt3xx-gp/chapter14.html>
pub(super) fn sixel(image: &RgbImage) -> String {
    let (width, height) = image.dimensions();
    let level = |value: u8| (u32::from(value) * (LEVELS - 1) + 127) / 255;
    let color = |x: u32, y: u32| -> Option<u32> {
        let [r, g, b] = image.get_pixel_checked(x, y)?.0.map(level);
        Some((r * LEVELS + g) * LEVELS + b)
    };
    let mut text = format!("\x1bP0;1;0q\"1;1;{width};{height}");
    let mut defined = vec![false; (LEVELS * LEVELS * LEVELS) as usize];
    for top in (0..height).step_by(6) {
        // Bit i of a column is row i of the band.
        let mut columns: Vec<Vec<u8>> = vec![Vec::new(); defined.len()];
        for x in 0..width {
            for bit in 0..6 {
                let Some(color) = color(x, top + bit) else { continue };
                let Some(column) = columns.get_mut(color as usize) else { continue };
                column.resize(width as usize, 0);
                if let Some(bits) = column.get_mut(x as usize) {
                    *bits |= 1 << bit;
                }
            }
        }
        let used = columns.iter().enumerate().filter(|(_, column)| !column.is_empty());
        for (i, (color, column)) in used.enumerate() {
            if i > 0 {
                text.push('$');
            }
            text.push_str(&format!("#{color}"));
            if let Some(is_defined) = defined.get_mut(color)
                && !std::mem::replace(is_defined, true)
            {
                // In percent.
                let share = |level: usize| level * 100 / (LEVELS as usize - 1);
                let levels = LEVELS as usize;
                let (r, g, b) = (color / levels / levels, color / levels % levels, color % levels);
                text.push_str(&format!(";2;{};{};{}#{color}", share(r), share(g), share(b)));
            }
            for run in column.chunk_by(|a, b| a == b) {
                let letter = char::from(b'?' + run.first().copied().unwrap_or_default());
                match run.len() {
                    length @ ..4 => text.extend(std::iter::repeat_n(letter, length)),
                    length => text.push_str(&format!("!{length}{letter}")),
                }
            }
        }
        text.push('-');
    }
    text.push_str("\x1b\\\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    const RED: Rgb<u8> = Rgb([255, 0, 0]);
    const BLUE: Rgb<u8> = Rgb([0, 0, 255]);

    /// Red above, blue below.
    fn flag(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |_, y| if y < height / 2 { RED } else { BLUE })
    }

    #[test]
    fn half_blocks_have_the_upper_pixel_before_the_lower_one() {
        let blocks = half_blocks(&flag(2, 2));
        assert_eq!(blocks, "\x1b[38;2;255;0;0m\x1b[48;2;0;0;255m▀▀\x1b[0m\n");
        let odd = half_blocks(&flag(1, 3));
        assert_eq!(
            odd,
            "\x1b[38;2;255;0;0m\x1b[48;2;0;0;255m▀\x1b[0m\n\x1b[38;2;0;0;255m\x1b[49m▀\x1b[0m\n"
        );
    }

    #[test]
    fn kittys_frames_come_in_chunks() {
        let one = kitty(&[flag(1, 2)], 125, 8, 7);
        assert_eq!(one, "\x1b_Ga=T,f=24,s=1,v=2,i=7,q=2,r=8,m=0;/wAAAAD/\x1b\\\n");
        // 40 * 40 * 3 bytes are 6400 letters: two chunks.
        let two = kitty(&[flag(40, 40), flag(40, 40)], 125, 8, 7);
        let keys: Vec<&str> = two
            .split("\x1b\\")
            .filter_map(|piece| piece.strip_prefix("\x1b_G"))
            .map(|piece| piece.split(';').next().unwrap())
            .collect();
        let want = [
            "a=T,f=24,s=40,v=40,i=7,q=2,r=8,m=1",
            "q=2,m=0",
            "a=f,f=24,s=40,v=40,i=7,q=2,z=125,m=1",
            "a=f,q=2,m=0",
            "a=a,i=7,r=1,z=125,q=2",
            "a=a,i=7,s=3,v=1,q=2",
        ];
        assert_eq!(keys, want);
        let chunks = two.split(';').skip(1).filter_map(|piece| piece.split('\x1b').next());
        assert!(chunks.clone().all(|chunk| chunk.len() <= CHUNK));
        assert_eq!(chunks.map(str::len).sum::<usize>(), 2 * 6400);
    }

    #[test]
    fn iterm2_gets_the_file() {
        assert_eq!(
            iterm2(b"foo", 5),
            "\x1b]1337;File=inline=1;size=3;height=5;preserveAspectRatio=1:Zm9v\x07\n"
        );
    }

    /// The image of a sixel text that [`sixel`] made, in the colours that it defines.
    fn read_sixel(text: &str) -> Vec<Vec<Option<[u32; 3]>>> {
        let body =
            text.strip_prefix("\x1bP0;1;0q\"1;1;").unwrap().strip_suffix("\x1b\\\n").unwrap();
        let number = |text: &str| {
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            (text[..end].parse::<usize>().unwrap(), text[end..].to_owned())
        };
        let (width, rest) = number(body);
        let (height, mut rest) = number(&rest[1..]);
        let mut pixels = vec![vec![None; width]; height.next_multiple_of(6)];
        let mut colors = std::collections::HashMap::new();
        let (mut x, mut top, mut color) = (0, 0, 0);
        while let Some(c) = rest.chars().next() {
            let after = rest[1..].to_owned();
            (x, top, rest) = match c {
                '#' => {
                    let (index, after) = number(&after);
                    color = index;
                    let mut after = after;
                    if let Some(rgb) = after.strip_prefix(";2;") {
                        let (r, rest) = number(rgb);
                        let (g, rest) = number(&rest[1..]);
                        let (b, rest) = number(&rest[1..]);
                        colors.insert(index, [r as u32, g as u32, b as u32]);
                        after = rest;
                    }
                    (x, top, after)
                }
                '$' => (0, top, after),
                '-' => (0, top + 6, after),
                _ => {
                    let (count, after) = match c {
                        '!' => number(&after),
                        _ => (1, rest.clone()),
                    };
                    let bits = after.as_bytes()[0] - b'?';
                    for bit in (0..6).filter(|bit| bits >> bit & 1 == 1) {
                        pixels[top + bit][x..x + count].fill(colors.get(&color).copied());
                    }
                    (x + count, top, after[1..].to_owned())
                }
            };
        }
        pixels.truncate(height);
        pixels
    }

    #[test]
    fn sixels_show_every_pixel() {
        let image = RgbImage::from_fn(9, 8, |x, y| match (x + y) % 3 {
            0 => RED,
            1 => BLUE,
            _ => Rgb([255, 255, (y * 30) as u8]),
        });
        let seen = read_sixel(&sixel(&image));
        for (x, y, pixel) in image.enumerate_pixels() {
            let percent = pixel.0.map(|v| (u32::from(v) * 5 + 127) / 255 * 20);
            assert_eq!(seen[y as usize][x as usize], Some(percent), "{x}, {y}");
        }
        // Long runs are counted.
        let plain = RgbImage::from_pixel(9, 6, RED);
        assert_eq!(sixel(&plain), "\x1bP0;1;0q\"1;1;9;6#180;2;100;0;0#180!9~-\x1b\\\n");
    }
}
