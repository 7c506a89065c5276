//! What a crate says about itself: its `Cargo.toml` and its README.

use std::fs;
use std::path::Path;

use toml::{Table, Value};

/// Texts longer than this are cut: the catalog indexes at most 1 MB of text per entry.
const README_BYTES_MAX: usize = 1 << 20;

/// The metadata of one crate, or of one of its folders.
#[derive(Debug, Clone, Default)]
pub(crate) struct Manifest {
    pub(crate) name: String,
    pub(crate) version: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) license: Option<String>,
    pub(crate) author: Option<String>,
    /// The keywords, or the categories of a crate without keywords.
    pub(crate) keywords: Vec<String>,
    /// The repository that the crate lives in, without what points inside it.
    pub(crate) repository: Option<String>,
    pub(crate) readme: Option<String>,
    /// Whether further crates live below this one.
    pub(crate) is_workspace: bool,
}

impl Manifest {
    /// Reads the manifest of the crate in `dir`; `None` if there is no crate with a name.
    ///
    /// A manifest that cargo itself would refuse counts as no crate: the scan lists what is there, it does
    /// not lint.
    pub(crate) fn read(dir: &Path) -> Option<Manifest> {
        let text = fs::read_to_string(dir.join("Cargo.toml")).ok()?;
        let mut manifest = parse(&text)?;
        manifest.readme = readme(dir, declared_readme(&text).as_deref());
        Some(manifest)
    }

    /// The manifest of a folder of this crate, named `name`: what the crate says holds for it too.
    pub(crate) fn of_folder(&self, name: String, dir: &Path) -> Manifest {
        Manifest { name, readme: readme(dir, None), is_workspace: false, ..self.clone() }
    }
}

fn parse(text: &str) -> Option<Manifest> {
    let table: Table = text.parse().ok()?;
    let package = table.get("package")?.as_table()?;
    let string = |key: &str| package.get(key).and_then(Value::as_str).map(one_line);
    let keywords = match strings(package, "keywords") {
        keywords if keywords.is_empty() => strings(package, "categories"),
        keywords => keywords,
    };
    Some(Manifest {
        name: string("name")?,
        version: string("version"),
        description: string("description"),
        license: string("license").or_else(|| string("license-file")),
        author: strings(package, "authors").into_iter().next(),
        keywords,
        repository: string("repository").map(|url| repository_root(&url)),
        readme: None,
        is_workspace: table.contains_key("workspace"),
    })
}

/// The strings of a list; a value inherited from a workspace (a table) counts as none.
fn strings(package: &Table, key: &str) -> Vec<String> {
    let list = package.get(key).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(one_line).collect()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Crates of one repository often point at their own folder in it; they belong together all the same.
fn repository_root(url: &str) -> String {
    let root = ["/tree/", "/blob/"]
        .iter()
        .filter_map(|inside| url.find(inside))
        .min()
        .map_or(url, |end| &url[..end]);
    root.trim_end_matches('/').trim_end_matches(".git").to_owned()
}

fn declared_readme(text: &str) -> Option<String> {
    let table: Table = text.parse().ok()?;
    let readme = table.get("package")?.get("readme")?.as_str()?;
    Some(readme.to_owned())
}

fn readme(dir: &Path, declared: Option<&str>) -> Option<String> {
    let usual = ["README.md", "README", "README.txt", "README.rst"];
    let bytes = declared.into_iter().chain(usual).find_map(|name| fs::read(dir.join(name)).ok())?;
    let text = String::from_utf8_lossy(&bytes);
    Some(cut(&text, README_BYTES_MAX).to_owned())
}

/// The longest beginning of `text` of at most `bytes_max` bytes that ends between characters.
pub(crate) fn cut(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_gives_its_metadata() {
        let text = r#"
            [package]
            name = "serde_derive"
            version = "1.0.1"
            description = "Macros\n  that derive"
            license = "MIT"
            keywords = ["serde", "no_std"]
            repository = "https://github.com/serde-rs/serde/tree/master/serde_derive"
        "#;
        let manifest = parse(text).expect("it is a crate");
        assert_eq!(manifest.name, "serde_derive");
        assert_eq!(manifest.description.as_deref(), Some("Macros that derive"));
        assert_eq!(manifest.keywords, ["serde", "no_std"]);
        let repository = manifest.repository.as_deref();
        assert_eq!(repository, Some("https://github.com/serde-rs/serde"));
    }

    #[test]
    fn inherited_values_count_as_absent() {
        let text = "[package]\nname = \"a\"\nversion.workspace = true\nkeywords.workspace = true";
        let manifest = parse(text).expect("it is a crate");
        assert_eq!(manifest.version, None);
        assert!(manifest.keywords.is_empty());
    }

    #[test]
    fn a_workspace_without_a_package_is_no_crate() {
        assert!(parse("[workspace]\nmembers = []").is_none());
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("añb", 2), "a");
        assert_eq!(cut("añb", 3), "añ");
        assert_eq!(cut("a", 9), "a");
    }
}
