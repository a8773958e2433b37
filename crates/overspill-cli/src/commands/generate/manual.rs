//! The text of a [`Manual`](crate::help::Manual), taken apart.

/// A heading and what stands below it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Section<'a> {
    pub(super) heading: &'a str,
    pub(super) blocks: Vec<Block>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// Text that is filled.
    Paragraph(String),
    /// Lines that stay as they are.
    Literal(Vec<String>),
}

/// Its sections, in order. A heading is a line of capitals that is not indented.
pub(super) fn sections(text: &str) -> Vec<Section<'_>> {
    let mut sections = Vec::new();
    let mut heading = "";
    let mut body = Vec::new();
    for line in text.lines() {
        if is_heading(line) {
            end(&mut sections, heading, &mut body);
            heading = line;
        } else {
            body.push(line);
        }
    }
    end(&mut sections, heading, &mut body);
    sections
}

fn is_heading(line: &str) -> bool {
    line.starts_with(|c: char| c.is_ascii_uppercase())
        && line.chars().all(|c| c.is_ascii_uppercase() || c == ' ')
}

fn end<'a>(sections: &mut Vec<Section<'a>>, heading: &'a str, body: &mut Vec<&str>) {
    let blocks = blocks(&std::mem::take(body));
    if !blocks.is_empty() {
        sections.push(Section { heading, blocks });
    }
}

/// Runs of lines with an empty one between them. What is indented is literal, unless it is a
/// line that says what comes next: that ends in a colon.
pub(super) fn blocks(lines: &[&str]) -> Vec<Block> {
    let mut blocks = Vec::new();
    for run in lines.split(|line| line.trim().is_empty()) {
        for line in run {
            let text = line.trim_start();
            let literal = text.len() < line.len() && !text.ends_with(':');
            match blocks.last_mut() {
                Some(Some(Block::Literal(lines))) if literal => lines.push((*line).to_owned()),
                Some(Some(Block::Paragraph(all))) if !literal => {
                    all.push(' ');
                    all.push_str(text);
                }
                _ if literal => blocks.push(Some(Block::Literal(vec![(*line).to_owned()]))),
                _ => blocks.push(Some(Block::Paragraph(text.to_owned()))),
            }
        }
        blocks.push(None);
    }
    blocks.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_taken_apart() {
        let text = "\
FILES
One two
three.

  /etc/a    what
  /etc/b

SEE ALSO
other(1)
";
        let paragraph = |text: &str| Block::Paragraph(text.to_owned());
        let literal = ["  /etc/a    what", "  /etc/b"].map(str::to_owned).to_vec();
        let expected = [
            Section {
                heading: "FILES",
                blocks: vec![paragraph("One two three."), Block::Literal(literal)],
            },
            Section { heading: "SEE ALSO", blocks: vec![paragraph("other(1)")] },
        ];
        assert_eq!(sections(text), expected);
    }

    #[test]
    fn examples_are_told_from_what_they_are_examples_of() {
        let blocks = blocks(&["  Two:", "    a \\", "        b", "", "  One:", "    c"]);
        let literal =
            |lines: &[&str]| Block::Literal(lines.iter().map(|&line| line.to_owned()).collect());
        let expected = [
            Block::Paragraph("Two:".to_owned()),
            literal(&["    a \\", "        b"]),
            Block::Paragraph("One:".to_owned()),
            literal(&["    c"]),
        ];
        assert_eq!(blocks, expected);
    }
}
