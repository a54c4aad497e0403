// Charts as SVG: panels with axes, series of points, limits. Nothing external; colours that colour-blind
// people can tell apart, each with a marker of its own; light and dark as the viewer prefers.
#ifndef FLUTE_BENCH_PLOT_H
#define FLUTE_BENCH_PLOT_H

#include <stdbool.h>
#include <stdio.h>

#include "engine/flute.h"

enum { PLOT_MAX_SERIES = 64, PLOT_MAX_PANELS = 80 };

typedef struct plot_point {
    double x, y;    // positive where the axis is logarithmic
    double high;    // a whisker reaches up to here; 0: none
    char label[16]; // beside the marker; may be empty
} plot_point;

typedef struct plot_series {
    char name[48];
    bool line; // connects the points
    int n;
    plot_point *points;
} plot_series;

typedef enum plot_scale {
    PLOT_LINEAR, // from 0
    PLOT_LOG,
    PLOT_VALUES, // logarithmic, with a tick at each point: for numbers that were chosen, such as batch sizes
} plot_scale;

typedef struct plot_panel {
    char title[96];
    const char *x_label, *y_label; // with units
    plot_scale x_scale, y_scale;
    bool wide;           // a row of its own
    double roof;         // the line y = roof · x; 0: none
    double limit;        // the line y = limit; 0: none
    char limit_name[64]; // of roof or limit
    int n_series;
    plot_series series[PLOT_MAX_SERIES];
} plot_panel;

typedef struct plot {
    char title[160], subtitle[384];
    bool out_of_memory; // a point is missing
    int n_panels;
    plot_panel panels[PLOT_MAX_PANELS];
} plot;

plot *plot_create(flute_error *err);
void plot_free(plot *p);
// The panel is zeroed but for its title, labels and scales.
plot_panel *plot_add_panel(plot *p, const char *title, const char *x_label, plot_scale x_scale,
                           const char *y_label, plot_scale y_scale);
// The series of that name, made if there is none.
plot_series *plot_find_series(plot_panel *panel, const char *name, bool line);
// Adds a point to a series of p, whose points are kept in the order of their x.
void plot_add(plot *p, plot_series *series, plot_point point);

void plot_write_svg(const plot *p, FILE *out);

#endif
