// What the theme leaves out for people who use a keyboard or a screen reader: names, and focus for boxes that scroll.
document$.subscribe(() => {
  document.querySelectorAll(".md-search[role=dialog]").forEach((box) => box.setAttribute("aria-label", "Search"));
  document.querySelectorAll(".md-typeset pre > code, .md-typeset__scrollwrap").forEach((box) => box.setAttribute("tabindex", "0"));
  document.querySelectorAll(".md-code__nav").forEach((bar, number) => bar.setAttribute("aria-label", `Code block ${number + 1}`));
  document.querySelectorAll("nav[aria-labelledby]").forEach((bar) => {
    const name = document.getElementById(bar.getAttribute("aria-labelledby"));
    if (name) {
      bar.setAttribute("aria-label", `Pages: ${name.textContent.trim()}`);
      bar.removeAttribute("aria-labelledby");
    }
  });
});
