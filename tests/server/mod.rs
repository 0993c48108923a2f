//! The real server over real sockets.

mod client;
mod crash;
mod jobs;
mod load;
mod schema;
mod security;
mod videos;

/// A PNG of 48 by 32 pixels.
fn client_picture() -> Vec<u8> {
    let image = image::RgbImage::from_fn(48, 32, |x, y| image::Rgb([x as u8 * 5, y as u8 * 7, 90]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}
