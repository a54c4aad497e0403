#include "tools/bench_plot.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/fail.h"

plot *plot_create(flute_error *err) {
    plot *p = calloc(1, sizeof *p);
    if (!p) fail_memory(err, sizeof *p, "a plot");
    return p;
}

void plot_free(plot *p) {
    if (!p) return;
    for (int i = 0; i < p->n_panels; i++)
        for (int j = 0; j < p->panels[i].n_series; j++) free(p->panels[i].series[j].points);
    free(p);
}

plot_panel *plot_add_panel(plot *p, const char *title, const char *x_label, plot_scale x_scale,
                           const char *y_label, plot_scale y_scale) {
    assert(p->n_panels < PLOT_MAX_PANELS);
    plot_panel *panel = &p->panels[p->n_panels++];
    snprintf(panel->title, sizeof panel->title, "%s", title);
    panel->x_label = x_label, panel->x_scale = x_scale;
    panel->y_label = y_label, panel->y_scale = y_scale;
    return panel;
}

plot_series *plot_find_series(plot_panel *panel, const char *name, bool line) {
    for (int i = 0; i < panel->n_series; i++)
        if (strcmp(panel->series[i].name, name) == 0) return &panel->series[i];
    assert(panel->n_series < PLOT_MAX_SERIES);
    plot_series *series = &panel->series[panel->n_series++];
    snprintf(series->name, sizeof series->name, "%s", name);
    series->line = line;
    return series;
}

void plot_add(plot *p, plot_series *series, plot_point point) {
    plot_point *points = realloc(series->points, (size_t)(series->n + 1) * sizeof *points);
    if (!points) {
        p->out_of_memory = true;
        return;
    }
    int at = series->n++;
    for (; at > 0 && points[at - 1].x > point.x; at--) points[at] = points[at - 1];
    points[at] = point;
    series->points = points;
}

// ---- Axes

enum { MAX_TICKS = 64 };

typedef struct axis {
    bool log;
    double low, high;
    int n_ticks;
    double ticks[MAX_TICKS];
} axis;

static double axis_place(const axis *a, double v) { // 0 at the low end, 1 at the high one
    return a->log ? log(v / a->low) / log(a->high / a->low) : (v - a->low) / (a->high - a->low);
}

static void axis_tick(axis *a, double v) {
    if (a->n_ticks < MAX_TICKS && v >= a->low * 0.9999 && v <= a->high * 1.0001) a->ticks[a->n_ticks++] = v;
}

// The next number of 1, 2, 5, 10, 20, … that is not below (or, downwards, not above) v > 0.
static double round_nicely(double v, bool upwards) {
    static const double steps[] = {1, 2, 5, 10};
    const double decade = pow(10, floor(log10(v)));
    if (upwards) {
        for (int i = 0; i < 4; i++)
            if (v <= steps[i] * decade * 1.0001) return steps[i] * decade;
        return 10 * decade;
    }
    for (int i = 3; i > 0; i--)
        if (v >= steps[i] * decade * 0.9999) return steps[i] * decade;
    return decade;
}

static void axis_fit_linear(axis *a, double high) {
    const double step = round_nicely(high / 6, true);
    a->low = 0, a->high = step * ceil(high / step * 1.001);
    for (int i = 0; i * step <= a->high * 1.0001; i++) axis_tick(a, i * step);
}

static void axis_fit_log(axis *a, double low, double high) {
    a->log = true;
    a->low = round_nicely(low, false), a->high = round_nicely(high, true);
    if (a->high / a->low < 3) a->low /= 2, a->high *= 2;
    const double decades = log10(a->high / a->low);
    const int every = decades > 8 ? (int)ceil(decades / 8) : 1; // decades from tick to tick
    for (double v = pow(10, floor(log10(a->low))); v <= a->high; v *= pow(10, every)) {
        axis_tick(a, v);
        if (decades < 2.5) axis_tick(a, 2 * v), axis_tick(a, 5 * v);
    }
}

static void axis_fit_values(axis *a, const plot_panel *panel, double low, double high) {
    const double margin = high > low ? pow(high / low, 0.09) : 2;
    a->log = true;
    a->low = low / margin, a->high = high * margin;
    for (int i = 0; i < panel->n_series; i++)
        for (int j = 0; j < panel->series[i].n; j++) {
            const double v = panel->series[i].points[j].x;
            bool known = false;
            for (int k = 0; k < a->n_ticks; k++) known |= a->ticks[k] == v;
            if (!known) axis_tick(a, v);
        }
}

static axis axis_fit(const plot_panel *panel, bool is_x) {
    axis a = {0};
    double low = INFINITY, high = 0;
    for (int i = 0; i < panel->n_series; i++)
        for (int j = 0; j < panel->series[i].n; j++) {
            const plot_point *point = &panel->series[i].points[j];
            low = fmin(low, is_x ? point->x : point->y);
            high = fmax(high, is_x ? point->x : fmax(point->y, point->high));
        }
    if (!is_x) high = fmax(high, panel->limit);
    switch (is_x ? panel->x_scale : panel->y_scale) {
    case PLOT_LINEAR:
        axis_fit_linear(&a, high);
        break;
    case PLOT_LOG:
        axis_fit_log(&a, low / 1.1, high * 1.1);
        break;
    case PLOT_VALUES:
        axis_fit_values(&a, panel, low, high);
        break;
    }
    return a;
}

// ---- SVG

enum {
    PAGE_WIDTH = 1040,
    PAGE_MARGIN = 24,
    HEADER_HEIGHT = 84,
    GAP = 24,
    PANEL_HEIGHT = 330,
    NARROW = (PAGE_WIDTH - 2 * PAGE_MARGIN - GAP) / 2,
    WIDE = PAGE_WIDTH - 2 * PAGE_MARGIN,
    MARGIN_LEFT = 64,
    MARGIN_RIGHT = 18,
    MARGIN_BOTTOM = 50,
    TITLE_HEIGHT = 28,
    LEGEND_LINE = 18,
    RADIUS = 4,
};

// Okabe and Ito's palette, but for its yellow and black, which not every background shows.
static const char *const colors[] = {"#0072b2", "#e69f00", "#009e73", "#d55e00",
                                     "#56b4e9", "#cc79a7", "#8c8c8c"};
enum { N_COLORS = 7, N_SHAPES = 6 };

static const char style[] =
    "<style>\n"
    "  .paper { fill: #ffffff } .panel { fill: #f7f8f9 } .ink { fill: #1f2328 } .soft { fill: #59636e }\n"
    "  .grid { stroke: #d8dee4; stroke-width: 1 } .axis { stroke: #8c959f; stroke-width: 1 }\n"
    "  .limit { stroke: #59636e; stroke-width: 1.5; stroke-dasharray: 6 4; fill: none }\n"
    "  @media (prefers-color-scheme: dark) {\n"
    "    .paper { fill: #0d1117 } .panel { fill: #161b22 } .ink { fill: #e6edf3 } .soft { fill: #9198a1 }\n"
    "    .grid { stroke: #2a313a } .axis { stroke: #6e7681 } .limit { stroke: #9198a1 }\n"
    "  }\n"
    "</style>\n";

// Bytes of the UTF-8 character at text; 0: it is cut off.
static size_t character_bytes(const char *text) {
    const unsigned char first = (unsigned char)*text;
    const size_t n = first < 0xc0 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    return strnlen(text, n) == n ? n : 0;
}

static void put_escaped(FILE *out, const char *text) {
    for (size_t n; *text && (n = character_bytes(text)) > 0; text += n) {
        if (*text == '&')
            fputs("&amp;", out);
        else if (*text == '<')
            fputs("&lt;", out);
        else if (*text == '>')
            fputs("&gt;", out);
        else if ((unsigned char)*text >= 0x20) // XML has no other control characters
            fwrite(text, 1, n, out);
    }
}

static void put_text(FILE *out, double x, double y, const char *attributes, const char *text) {
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" %s>", x, y, attributes);
    put_escaped(out, text);
    fputs("</text>\n", out);
}

static void put_line(FILE *out, const char *class, double x1, double y1, double x2, double y2) {
    fprintf(out, "<line class=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", class, x1, y1, x2,
            y2);
}

static void put_marker(FILE *out, int series, double x, double y) {
    static const char *const shapes[N_SHAPES] = {
        NULL, // a circle
        "m-4 -4h8v8h-8z",
        "m0 -5.2l5 8.7h-10z",
        "m0 -5.6l5.6 5.6l-5.6 5.6l-5.6 -5.6z",
        "m0 5.2l5 -8.7h-10z",
        "m-1.6 -5h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4v-3.2h3.4z"};
    const char *shape = shapes[series % N_SHAPES], *color = colors[series % N_COLORS];
    if (shape)
        fprintf(out, "<path d=\"M%.1f %.1f%s\" fill=\"%s\"/>\n", x, y, shape, color);
    else
        fprintf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%d\" fill=\"%s\"/>\n", x, y, RADIUS, color);
}

static void format_tick(char *text, size_t size, double v) {
    if (v >= 1e6)
        snprintf(text, size, "%gM", v / 1e6);
    else if (v >= 1e4)
        snprintf(text, size, "%gk", v / 1e3);
    else
        snprintf(text, size, "%g", v);
}

enum { MAX_LABELS = 128 };

// A panel at its place on the page.
typedef struct frame {
    FILE *out;
    const plot_panel *panel;
    double left, top, right, bottom; // of the area inside the axes
    axis x, y;
    bool dodge; // whiskers of series at the same x stand side by side
    int n_labels;
    double labels[MAX_LABELS][2];
} frame;

static double frame_x(const frame *f, double v) {
    return f->left + axis_place(&f->x, v) * (f->right - f->left);
}

static double frame_y(const frame *f, double v) {
    return f->bottom - axis_place(&f->y, v) * (f->bottom - f->top);
}

static void draw_axes(const frame *f) {
    FILE *out = f->out;
    char text[32];
    double last = -INFINITY;
    for (int i = 0; i < f->x.n_ticks; i++) {
        const double x = frame_x(f, f->x.ticks[i]);
        put_line(out, "grid", x, f->top, x, f->bottom);
        format_tick(text, sizeof text, f->x.ticks[i]);
        if (fabs(x - last) < 7.0 * (double)strlen(text) + 4) continue; // no room for its number
        put_text(out, x, f->bottom + 16, "class=\"soft\" font-size=\"11\" text-anchor=\"middle\"", text);
        last = x;
    }
    for (int i = 0; i < f->y.n_ticks; i++) {
        const double y = frame_y(f, f->y.ticks[i]);
        put_line(out, "grid", f->left, y, f->right, y);
        format_tick(text, sizeof text, f->y.ticks[i]);
        put_text(out, f->left - 8, y + 4, "class=\"soft\" font-size=\"11\" text-anchor=\"end\"", text);
    }
    put_line(out, "axis", f->left, f->bottom, f->right, f->bottom);
    put_text(out, 0.5 * (f->left + f->right), f->bottom + 36,
             "class=\"ink\" font-size=\"12\" text-anchor=\"middle\"", f->panel->x_label);
    fprintf(out,
            "<text transform=\"translate(%.1f %.1f) rotate(-90)\" class=\"ink\" font-size=\"12\" "
            "text-anchor=\"middle\">",
            f->left - 46, 0.5 * (f->top + f->bottom));
    put_escaped(out, f->panel->y_label);
    fputs("</text>\n", out);
}

// The line of a limit, and its name along it.
static void draw_limit(const frame *f) {
    const plot_panel *panel = f->panel;
    double x1 = f->x.low, x2 = f->x.high, y1 = panel->limit, y2 = panel->limit;
    if (panel->roof > 0) { // the part of it that is inside
        x1 = fmax(x1, f->y.low / panel->roof), x2 = fmin(x2, f->y.high / panel->roof);
        y1 = panel->roof * x1, y2 = panel->roof * x2;
    } else if (panel->limit <= 0) {
        return;
    }
    if (x1 >= x2) return;
    const double left = frame_x(f, x1), right = frame_x(f, x2), low = frame_y(f, y1), high = frame_y(f, y2);
    put_line(f->out, "limit", left, low, right, high);
    // Its name: above a level line, else beside the upper end, on the side where there is room.
    const bool leftwards = panel->roof > 0 && right > 0.5 * (f->left + f->right);
    char attributes[80];
    snprintf(attributes, sizeof attributes, "class=\"soft\" font-size=\"11\" text-anchor=\"%s\"",
             leftwards ? "end" : "start");
    if (panel->roof > 0)
        put_text(f->out, right + (leftwards ? -14 : 10), high + 14, attributes, panel->limit_name);
    else
        put_text(f->out, left + 8, low - 6, attributes, panel->limit_name);
}

// The label of a point, unless it would run into another one.
static void draw_label(frame *f, double x, double y, const char *text) {
    for (int i = 0; i < f->n_labels; i++)
        if (fabs(f->labels[i][0] - x) < 26 && fabs(f->labels[i][1] - y) < 11) return;
    if (!text[0] || f->n_labels == MAX_LABELS) return;
    f->labels[f->n_labels][0] = x, f->labels[f->n_labels++][1] = y;
    put_text(f->out, x, y, "class=\"soft\" font-size=\"10\"", text);
}

static void draw_series(frame *f, int index) {
    const plot_series *series = &f->panel->series[index];
    const char *color = colors[index % N_COLORS];
    const double step = fmin(7, 60.0 / f->panel->n_series),
                 aside = f->dodge ? step * (index - 0.5 * (f->panel->n_series - 1)) : 0;
    if (series->line && series->n > 1) {
        fprintf(
            f->out,
            "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" stroke-linejoin=\"round\" points=\"",
            color);
        for (int i = 0; i < series->n; i++)
            fprintf(f->out, "%s%.1f,%.1f", i ? " " : "", frame_x(f, series->points[i].x) + aside,
                    frame_y(f, series->points[i].y));
        fputs("\"/>\n", f->out);
    }
    for (int i = 0; i < series->n; i++) {
        const plot_point *point = &series->points[i];
        const double x = frame_x(f, point->x) + aside, y = frame_y(f, point->y);
        if (point->high > point->y) {
            const double high = frame_y(f, point->high);
            fprintf(f->out,
                    "<path d=\"M%.1f %.1fV%.1fM%.1f %.1fh6\" stroke=\"%s\" stroke-width=\"1.2\" "
                    "fill=\"none\"/>\n",
                    x, y, high, x - 3, high, color);
        }
        put_marker(f->out, index, x, y);
        draw_label(f, x + 7, y - 5, point->label);
    }
}

// The names of the series in as many lines as they take; returns the height. out NULL: only measures.
static double draw_legend(FILE *out, const plot_panel *panel, double left, double top, double width) {
    double x = 0, y = 0;
    for (int i = 0; i < panel->n_series; i++) {
        const double own = 26 + 6.4 * (double)strlen(panel->series[i].name);
        if (x > 0 && x + own > width) x = 0, y += LEGEND_LINE;
        if (out) {
            put_marker(out, i, left + x + RADIUS, top + y + 8);
            put_text(out, left + x + 14, top + y + 12, "class=\"ink\" font-size=\"11\"",
                     panel->series[i].name);
        }
        x += own;
    }
    return y + LEGEND_LINE;
}

static void draw_panel(FILE *out, const plot_panel *panel, double left, double top, double width) {
    fprintf(out, "<rect class=\"panel\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%d\" rx=\"8\"/>\n",
            left, top, width, PANEL_HEIGHT);
    put_text(out, left + 16, top + 22, "class=\"ink\" font-size=\"14\" font-weight=\"600\"", panel->title);
    const double legend = draw_legend(out, panel, left + 16, top + TITLE_HEIGHT + 2, width - 32);
    frame f = {.out = out,
               .panel = panel,
               .left = left + MARGIN_LEFT,
               .top = top + TITLE_HEIGHT + legend + 16,
               .right = left + width - MARGIN_RIGHT,
               .bottom = top + PANEL_HEIGHT - MARGIN_BOTTOM,
               .x = axis_fit(panel, true),
               .y = axis_fit(panel, false)};
    for (int i = 0; i < panel->n_series; i++)
        for (int j = 0; j < panel->series[i].n; j++) f.dodge |= panel->series[i].points[j].high > 0;
    draw_axes(&f);
    draw_limit(&f);
    for (int i = 0; i < panel->n_series; i++) draw_series(&f, i);
}

// Places the panels, two in a row where they are not wide; returns the height of the page. out NULL: only
// measures.
static double draw_panels(FILE *out, const plot *p) {
    double x = PAGE_MARGIN, y = HEADER_HEIGHT;
    for (int i = 0; i < p->n_panels; i++) {
        const plot_panel *panel = &p->panels[i];
        if (panel->wide && x > PAGE_MARGIN) x = PAGE_MARGIN, y += PANEL_HEIGHT + GAP;
        const double width = panel->wide ? WIDE : NARROW;
        if (out) draw_panel(out, panel, x, y, width);
        x += width + GAP;
        if (x < PAGE_WIDTH - PAGE_MARGIN) continue;
        x = PAGE_MARGIN, y += PANEL_HEIGHT + GAP;
    }
    return x > PAGE_MARGIN ? y + PANEL_HEIGHT + PAGE_MARGIN : y - GAP + PAGE_MARGIN;
}

void plot_write_svg(const plot *p, FILE *out) {
    const double height = draw_panels(NULL, p);
    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %.0f\" width=\"%d\" height=\"%.0f\" "
            "font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif\">\n",
            PAGE_WIDTH, height, PAGE_WIDTH, height);
    fputs("<title>", out);
    put_escaped(out, p->title);
    fputs("</title>\n", out);
    fputs(style, out);
    fprintf(out, "<rect class=\"paper\" width=\"%d\" height=\"%.0f\"/>\n", PAGE_WIDTH, height);
    put_text(out, PAGE_MARGIN, 38, "class=\"ink\" font-size=\"20\" font-weight=\"600\"", p->title);
    put_text(out, PAGE_MARGIN, 62, "class=\"soft\" font-size=\"13\"", p->subtitle);
    draw_panels(out, p);
    fputs("</svg>\n", out);
}
