//! A document as HTML that mail programs show: one table, styles within, no colours but of bar and
//! button, so that a dark screen stays dark.

use std::fmt::Write as _;

use crate::render::{Document, Markup, Plain};

/// The document as a page.
pub(super) fn written(document: &Document) -> String {
    let mut page = String::with_capacity(2048);
    // Writing to a text cannot fail.
    let _ = write(document, &mut page);
    page
}

fn escaped(plain: &Plain) -> String {
    plain.in_markup(Markup::Html)
}

fn write(document: &Document, to: &mut String) -> std::fmt::Result {
    let title = escaped(&document.title);
    let colour = document.tone.colour();
    write!(
        to,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta name=\"supported-color-schemes\" content=\"light dark\">\n\
         <title>{title}</title>\n</head>\n\
         <body style=\"margin:0;padding:12px;font-family:-apple-system,Segoe UI,Roboto,Helvetica,\
         Arial,sans-serif;font-size:16px;line-height:1.4\">\n\
         <table role=\"presentation\" width=\"100%\" cellpadding=\"0\" cellspacing=\"0\" \
         style=\"max-width:640px;border-collapse:collapse\">\n\
         <tr><td style=\"height:6px;line-height:6px;font-size:1px;background-color:#{colour:06x}\" \
         bgcolor=\"#{colour:06x}\">&nbsp;</td></tr>\n\
         <tr><td style=\"padding:12px 0;font-size:18px;font-weight:bold;word-break:break-word\">\
         {sign} {title}</td></tr>\n",
        sign = document.tone.sign(),
    )?;
    for mark in &document.marks {
        let mark = escaped(mark);
        writeln!(
            to,
            "<tr><td style=\"padding:0 0 8px;font-style:italic\">{mark}</td></tr>"
        )?;
    }
    if !document.facts.is_empty() {
        write!(
            to,
            "<tr><td style=\"padding:0 0 12px\">\n<table cellpadding=\"0\" cellspacing=\"0\" \
             style=\"border-collapse:collapse;font-size:15px\">\n"
        )?;
        for fact in &document.facts {
            let (name, value) = (fact.name, escaped(&fact.value));
            writeln!(
                to,
                "<tr><th align=\"left\" valign=\"top\" style=\"padding:3px 12px 3px 0;\
                 text-align:left;font-weight:normal;opacity:0.7;white-space:nowrap\">{name}</th>\
                 <td valign=\"top\" style=\"padding:3px 0;word-break:break-word\">{value}</td></tr>"
            )?;
        }
        to.push_str("</table>\n</td></tr>\n");
    }
    if let Some(text) = &document.text {
        let text = text.in_markup(Markup::Html, "<br>");
        writeln!(
            to,
            "<tr><td style=\"padding:0 0 12px;word-break:break-word\">{text}</td></tr>"
        )?;
    }
    if document.is_cut {
        to.push_str("<tr><td style=\"padding:0 0 12px\">(shortened)</td></tr>\n");
    }
    if let Some(link) = &document.link {
        // The address is made of checked parts; in an attribute it is escaped all the same.
        let url = escaped(&Plain::new(&link.url));
        writeln!(
            to,
            "<tr><td style=\"padding:4px 0 16px\"><a href=\"{url}\" style=\"display:inline-block;\
             padding:10px 18px;border-radius:6px;background-color:#0b5cad;color:#ffffff;\
             text-decoration:none;font-weight:bold\">{}</a></td></tr>",
            link.label
        )?;
    }
    if let Some(paste) = &document.paste {
        let paste = escaped(paste);
        writeln!(
            to,
            "<tr><td><pre style=\"margin:0;padding:10px;border:1px solid #8a8a8a;border-radius:6px;\
             font-family:Menlo,Consolas,monospace;font-size:13px;white-space:pre-wrap;\
             word-break:break-all\">{paste}</pre></td></tr>"
        )?;
    }
    to.push_str("</table>\n</body>\n</html>\n");
    Ok(())
}
