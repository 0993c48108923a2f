//! Image orientation from EXIF or XMP metadata, as in PIL's `exif_transpose`.

use image::ImageDecoder;
use image::metadata::Orientation;

/// The orientation of a decoder's image: that of its EXIF data, or else that of its XMP data.
///
/// Unreadable metadata are ignored.
pub(super) fn orientation(decoder: &mut impl ImageDecoder) -> Orientation {
    let found = match decoder.exif_metadata() {
        Ok(Some(exif)) => of_exif(&exif),
        // In TIFF, the orientation is in the directory of the image itself.
        _ => decoder.orientation().ok().filter(|found| *found != Orientation::NoTransforms),
    };
    let of_xmp = || decoder.xmp_metadata().ok().flatten().and_then(|xmp| of_xmp(&xmp));
    found.or_else(of_xmp).unwrap_or(Orientation::NoTransforms)
}

/// The orientation in EXIF data, with or without the `Exif` header used in JPEG.
pub(super) fn of_exif(exif: &[u8]) -> Option<Orientation> {
    Orientation::from_exif_chunk(exif.strip_prefix(b"Exif\0\0").unwrap_or(exif))
}

/// The orientation in XMP data, stored as an attribute or as an element.
pub(super) fn of_xmp(xmp: &[u8]) -> Option<Orientation> {
    const NAME: &[u8] = b"tiff:Orientation";
    let at = xmp.windows(NAME.len()).position(|window| window == NAME)?;
    let rest = xmp.get(at + NAME.len()..)?;
    let digit = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?.first()?;
    Orientation::from_exif(digit.wrapping_sub(b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xmp_has_it_as_an_attribute_or_an_element() {
        let found = |text: &str| of_xmp(text.as_bytes());
        assert_eq!(found(r#"<a tiff:Orientation="6"/>"#), Some(Orientation::Rotate90));
        assert_eq!(found("<tiff:Orientation>3</tiff:Orientation>"), Some(Orientation::Rotate180));
        assert_eq!(found(r#"<a tiff:Orientation="9"/>"#), None);
        assert_eq!(found("tiff:Orientation"), None);
        assert_eq!(found(""), None);
    }
}
