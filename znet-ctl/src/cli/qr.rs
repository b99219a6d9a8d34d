//! QR codes (ISO/IEC 18004) of files that a phone reads off a screen.

use std::path::{Path, PathBuf};

use qrcode::render::{svg, unicode};
use qrcode::{Color, EcLevel, QrCode};
use znet_cli::exit::{Failure, Kind};

use super::Result;

/// Light modules around a code, which readers need (ISO/IEC 18004, section 9.1).
const QUIET_ZONE: usize = 4;
/// Pixels of a module in an image: a code of this size fills a phone's view from a screen.
const PIXELS: usize = 8;

/// The path of an image, which tells its format.
pub(super) fn image_path(text: &str) -> std::result::Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("svg" | "png") => Ok(path),
        _ => Err("its name has to end in .svg or .png".to_owned()),
    }
}

/// A code for a terminal of any colours: half blocks, the light modules drawn.
pub(super) fn terminal(text: &str) -> Result<String> {
    let rendered = code(text)?
        .render::<unicode::Dense1x2>()
        .dark_color(unicode::Dense1x2::Light)
        .light_color(unicode::Dense1x2::Dark)
        .build();
    Ok(format!("{rendered}\n"))
}

/// A code as an image of the format that the path tells.
pub(super) fn image(text: &str, path: &Path) -> Result<Vec<u8>> {
    let code = code(text)?;
    if path.extension().is_some_and(|ending| ending == "png") {
        return png(&code).map_err(failed);
    }
    Ok(code.render::<svg::Color<'_>>().module_dimensions(8, 8).build().into_bytes())
}

fn code(text: &str) -> Result<QrCode> {
    // A screen is clean, so the least redundancy will do, and gives the coarsest modules.
    QrCode::with_error_correction_level(text, EcLevel::L).map_err(failed)
}

fn failed(error: impl std::error::Error) -> Failure {
    Failure::new(Kind::Failure, "qr", format!("the QR code cannot be made: {error}"))
}

fn png(code: &QrCode) -> std::result::Result<Vec<u8>, png::EncodingError> {
    let width = code.width();
    let colors = code.to_colors();
    let side = (width + 2 * QUIET_ZONE) * PIXELS;
    let inside = |at: usize| (at / PIXELS).checked_sub(QUIET_ZONE).filter(|module| *module < width);
    let light = |x: usize, y: usize| match (inside(x), inside(y)) {
        (Some(x), Some(y)) => colors.get(y * width + x) != Some(&Color::Dark),
        _ => true,
    };
    let mut pixels = Vec::with_capacity(side * side);
    for y in 0..side {
        pixels.extend((0..side).map(|x| if light(x, y) { u8::MAX } else { 0 }));
    }
    let mut bytes = Vec::new();
    let side = u32::try_from(side).unwrap_or(u32::MAX);
    let mut encoder = png::Encoder::new(&mut bytes, side, side);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&pixels)?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn every_form_shows_the_same_modules() {
        let code = code("znet").unwrap();
        let width = code.width();
        let dark = |x: usize, y: usize| code[(x, y)] == Color::Dark;
        let decoder = png::Decoder::new(std::io::Cursor::new(png(&code).unwrap()));
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        let side = info.width as usize;
        assert_eq!(side, (width + 2 * QUIET_ZONE) * PIXELS);
        let terminal = terminal("znet").unwrap();
        let lines: Vec<Vec<char>> = terminal.lines().map(|line| line.chars().collect()).collect();
        for (x, y) in (0..width).flat_map(|x| (0..width).map(move |y| (x, y))) {
            let (px, py) = ((x + QUIET_ZONE) * PIXELS + 3, (y + QUIET_ZONE) * PIXELS + 3);
            assert_eq!(pixels[py * side + px] == 0, dark(x, y), "png {x} {y}");
            let at = y + QUIET_ZONE;
            let half = (lines[at / 2][x + QUIET_ZONE], at % 2);
            let lit = matches!(half, ('█', _) | ('▀', 0) | ('▄', 1));
            assert_eq!(!lit, dark(x, y), "terminal {x} {y}");
        }
        assert!(image_path("a.svg").is_ok() && image_path("a.png").is_ok() && image_path("a.jpg").is_err());
        let svg = String::from_utf8(image("znet", Path::new("a.svg")).unwrap()).unwrap();
        assert!(svg.starts_with("<?xml") && svg.contains("</svg>"), "{svg}");
    }
}
